"""Figures of the drift study from the scores of all arms: AUC, paired intervals, AUC over time, and a plot.
Pure.

Bootstrap draws and intervals are those of study_figures.py: the same users are drawn for all arms, and the
mean of the seeds is judged.
"""

# K arms, N judged rows, S draws, W windows of time, R seeds

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.studies.quality.study_figures import Floats, JudgedRows, draw_aucs, pair_of
from recsys.model.prediction_metrics import auc, log_loss

MARGIN: Final = 0.0005  # of AUC, tolerance of merged against the better parent
STUDENT: Final = "student"  # of the online line
FAR: Final = "offline nightly"  # may leave the frame of differences
PARENTS: Final = (FAR, "online only")
COLORS: Final = {
    "nightly lists": "#999",
    "offline nightly": "#e39a2d",
    "online only": "#222",
    "warm start": "#b5443c",
    "merged": "#14679e",
    "merged, one line": "#6aa9d8",
    "merged, two lines": "#4fa37c",
    "student": "#7a5ea8",
}


@dataclass(frozen=True)
class Run:
    """One seed: AUC by arm (K,), drawn (S, K), log loss (K,), AUC in windows (W, K), and number of judged
    rows."""

    points_K: Floats
    drawn_SK: Floats
    losses_K: Floats
    windows_WK: Floats
    rows: int


def run_of(
    scores: Mapping[str, NDArray[Any]],
    judged: NDArray[np.bool_],
    labels: NDArray[np.int64],
    users: NDArray[np.str_],
    window: NDArray[np.int64],
    *,
    samples: int,
    seed: int,
) -> Run:
    """Figures of one seed. Arrays are (N,) of all rows; ``window`` numbers the ``judged`` ones."""
    rows = np.array([arm_scores[judged] for arm_scores in scores.values()], np.float32)
    points, drawn = draw_aucs(JudgedRows(rows, labels[judged], users[judged]), samples, seed)
    lost = np.array([log_loss(arm_scores, labels[judged]) for arm_scores in rows])
    windows = _by_window(rows, labels[judged], window[judged])
    return Run(points, drawn, lost, windows, int(judged.sum()))


def _by_window(rows_KN: NDArray[Any], labels: NDArray[Any], window: NDArray[np.int64]) -> Floats:
    count = int(window.max()) + 1 if len(window) else 0
    return np.array(
        [
            [auc(arm_scores[window == number], labels[window == number]) for arm_scores in rows_KN]
            for number in range(count)
        ]
    )


def figures_of(arms: Sequence[str], runs: Sequence[Run]) -> dict[str, Any]:
    """AUC of each arm, the difference of each merged arm to every other, and AUC in windows."""
    points_RK = np.array([run.points_K for run in runs])
    mean_K = points_RK.mean(axis=0)
    lost_K = np.mean([run.losses_K for run in runs], axis=0)
    drawn_SK = np.mean([run.drawn_SK for run in runs], axis=0)
    place = {arm: k for k, arm in enumerate(arms)}
    beside = [
        (baseline, merged)
        for merged in arms
        if merged.startswith("merged")
        for baseline in arms
        if baseline not in (merged, STUDENT)
    ]
    beside += [("online only", STUDENT)] if STUDENT in arms else []
    pairs = [
        pair_of(
            a, b, mean_K[place[b]] - mean_K[place[a]], drawn_SK[:, place[b]] - drawn_SK[:, place[a]]
        )
        for a, b in beside
    ]
    windows = min(len(run.windows_WK) for run in runs)
    over_time = np.nanmean([run.windows_WK[:windows] for run in runs], axis=0)
    best = max(mean_K[place[parent]] for parent in PARENTS)
    return {
        "arms": [
            {"arm": arm, "auc": round(float(mean_K[k]), 5), "log_loss": round(float(lost_K[k]), 5),
             "auc_by_seed": [round(float(x), 5) for x in points_RK[:, k]]}
            for arm, k in place.items()
        ],
        "pairs": pairs,
        "to_better_parent": {
            arm: round(float(mean_K[k] - best), 5)
            for arm, k in place.items() if arm.startswith("merged")
        },
        "windows": [[round(float(x), 5) for x in row] for row in over_time.T],
    }  # fmt: skip


def shown(story: Mapping[str, Any], merged: str = "merged") -> dict[str, bool]:
    """Claims of the study, and whether the figures support them."""
    verdicts = {p["from"]: p["said"] for p in story["pairs"] if p["to"] == merged}
    shown_by_claim = {
        "not below the better parent": story["to_better_parent"][merged] >= -MARGIN,
        "better than warm start": verdicts["warm start"] == "better",
    }
    if "nightly lists" in verdicts:
        shown_by_claim["better than nightly lists"] = verdicts["nightly lists"] == "better"
    return shown_by_claim


_WIDE, _TALL, _LEFT, _GAP = 400, 150, 62, 40


def plot(stories: Sequence[Mapping[str, Any]], title: str) -> str:
    """For each scenario AUC over time by arm, and beside it the difference of each arm to online only."""
    height = 70 + len(stories) * (_TALL + _GAP)
    width = 2 * (_WIDE + _LEFT) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14">{escape(title)}</text>',
        f'<clipPath id="panel"><rect width="{_WIDE}" height="{_TALL}"/></clipPath>',
    ]
    for number, arm in enumerate(a["arm"] for a in stories[0]["arms"]):
        x = _LEFT + number * 121
        parts.append(f'<path d="M{x} 37h18" stroke="{COLORS[arm]}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 23}" y="41">{escape(arm)}</text>')
    for row, story in enumerate(stories):
        top = 75 + row * (_TALL + _GAP)
        names = [a["arm"] for a in story["arms"]]
        curves = dict(zip(names, np.array(story["windows"]), strict=True))
        parts += _panel(_LEFT, top, f"{story['story']}: AUC", curves, story, "{:.2f}")
        base = curves["online only"]
        above = {
            arm: 1000 * (curve - base) for arm, curve in curves.items() if arm != "nightly lists"
        }
        left = 2 * _LEFT + _WIDE
        parts += _panel(left, top, "AUC − online only, in thousandths", above, story, "{:+.1f}")
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(
    left: int,
    top: int,
    title: str,
    curves: Mapping[str, Floats],
    story: Mapping[str, Any],
    form: str,
) -> list[str]:
    """Curves in a frame. The ``FAR`` arm may leave it, so that the others can be told apart."""
    near = {arm: curve for arm, curve in curves.items() if arm != FAR or "nightly lists" in curves}
    values = np.concatenate(list(near.values()))
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    space = max(high - low, 1e-4) * 0.1
    low, high = low - space, high + space
    count, start, step = len(next(iter(curves.values()))), story["from_h"], story["window_h"]

    def at(place: float, value: float) -> tuple[float, float]:
        return round(_WIDE * place / count, 1), round(_TALL * (high - value) / (high - low), 1)

    parts = [f'<text x="{left}" y="{top - 8}" font-weight="bold">{escape(title)}</text>']
    parts.append(f'<g transform="translate({left} {top})">')
    for line in range(4):
        value = low + (high - low) * line / 3
        y = at(0, value)[1]
        parts.append(f'<path d="M0 {y}h{_WIDE}" stroke="#ddd"/>')
        parts.append(f'<text x="-5" y="{y + 4}" text-anchor="end">{form.format(value)}</text>')
    for number, time_h in enumerate(story["ready_h"]):
        x = at((time_h - start) / step, low)[0]
        parts.append(f'<path d="M{x} 0v{_TALL}" stroke="#bbb" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{x + 3}" y="{_TALL + 13}">job {number + 1}</text>')
    for arm, curve in curves.items():
        points = " ".join(
            "{},{}".format(*at(n + 0.5, value))
            for n, value in enumerate(curve)
            if np.isfinite(value)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLORS[arm]}" stroke-width="1.6" '
            'clip-path="url(#panel)"/>'
        )
    return [*parts, "</g>"]
