"""AUC and intervals between neighbours, from scores by sync schedule. Pure.

A pair is separable when the 95 % interval of its difference doesn't contain 0. The bootstrap draws users
instead of rows; a draw weighs the rows of all schedules alike, so differences are paired. The mean of the
seeds is judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


def pair_of(a: str, b: str, difference: float, drawn_S: Floats, level: float = 0.95) -> dict[str, Any]:
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
