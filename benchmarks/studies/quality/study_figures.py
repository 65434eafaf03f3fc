"""AUC, intervals between neighbours, and a plot, from scores by sync schedule. Pure.

A pair is separable when the 95 % interval of its difference doesn't contain 0. The bootstrap draws users
instead of rows; a draw weighs the rows of all schedules alike, so differences are paired. The mean of the
seeds is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.model.prediction_metrics import auc

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class JudgedRows:
    """Rows of one seed: scores (K, N) by sync schedule, labels (N,), users (N,)."""

    scores_KN: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    users_N: NDArray[np.str_]


def draw_aucs(judged: JudgedRows, samples: int, seed: int) -> tuple[Floats, Floats]:
    """AUC of each sync schedule (K,), and with bootstrapped users (samples, K)."""
    users, user = np.unique(judged.users_N, return_inverse=True)
    generator = np.random.default_rng(seed)
    drawn_SU = generator.multinomial(len(users), np.full(len(users), 1 / len(users)), samples)
    points, columns = [], []
    for scores in judged.scores_KN:
        order = np.argsort(scores, kind="stable")  # sorting sorted values is quick
        score, label, user_of_row = scores[order], judged.labels_N[order], user[order]
        points.append(auc(score, label))
        columns.append([auc(score, label, times_U[user_of_row]) for times_U in drawn_SU])
    return np.array(points), np.array(columns).T


def figures(
    names: Sequence[str], seeds: Sequence[tuple[Floats, Floats]], level: float = 0.95
) -> dict[str, Any]:
    """AUC of each sync schedule, the mean over the seeds, and the paired differences of neighbours.

    The last pair is the first and the last schedule.
    """
    points_RK = np.array([points for points, _ in seeds])
    drawn_SK = np.mean([drawn for _, drawn in seeds], axis=0)
    mean_K = points_RK.mean(axis=0)
    last = len(names) - 1
    pairs = [*pairwise(range(len(names))), *([(0, last)] if last > 1 else [])]
    return {
        "syncs": [
            {"sync": name, "auc": round(float(mean_K[k]), 5),
             "auc_by_seed": [round(float(x), 5) for x in points_RK[:, k]]}
            for k, name in enumerate(names)
        ],
        "pairs": [
            pair_of(names[a], names[b], mean_K[b] - mean_K[a], drawn_SK[:, b] - drawn_SK[:, a], level)
            for a, b in pairs
        ],
    }  # fmt: skip


def pair_of(
    a: str, b: str, difference: float, drawn_S: Floats, level: float = 0.95
) -> dict[str, Any]:
    """Verdict on b − a, whose bootstrap draws are ``drawn_S``."""
    finite_S, tail = drawn_S[np.isfinite(drawn_S)], (1 - level) / 2
    low, high = np.quantile(finite_S, [tail, 1 - tail]) if finite_S.size else (0.0, 0.0)
    return {
        "from": a,
        "to": b,
        "difference": round(float(difference), 5),
        "low": round(float(low), 5),
        "high": round(float(high), 5),
        "said": "not separable" if low <= 0 <= high else "better" if low > 0 else "worse",
    }


def plot(figures: dict[str, Any], title: str) -> str:
    """AUC of each sync schedule as SVG: the mean as a line, each seed as a dot."""
    syncs = figures["syncs"]
    values = [value for sync in syncs for value in sync["auc_by_seed"]]
    low, high = min(values), max(values)
    space = max(high - low, 1e-4) * 0.1
    low, high = low - space, high + space
    left, top, wide, tall = 70, 40, 560, 260

    def at(k: int, value: float) -> tuple[float, float]:
        x = left + wide * (k + 0.5) / len(syncs)
        return round(x, 1), round(top + tall * (high - value) / (high - low), 1)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 650 350" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="650" height="350" fill="white"/>',
        f'<text x="{left}" y="24" font-size="14">{escape(title)}</text>',
    ]
    for line in range(5):
        value = low + (high - low) * line / 4
        y = at(0, value)[1]
        parts.append(f'<path d="M{left} {y}H{left + wide}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{value:.4f}</text>')
    for k, sync in enumerate(syncs):
        x = at(k, low)[0]
        name = escape(sync["sync"])
        parts.append(f'<text x="{x}" y="{top + tall + 20}" text-anchor="middle">{name}</text>')
        for value in sync["auc_by_seed"]:
            parts.append('<circle cx="{}" cy="{}" r="3" fill="#9bc"/>'.format(*at(k, value)))
    path = " ".join("{},{}".format(*at(k, sync["auc"])) for k, sync in enumerate(syncs))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#146" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
