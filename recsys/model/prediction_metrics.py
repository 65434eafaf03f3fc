"""Metrics of predicted probabilities: ranking (AUC) and calibration (log loss and related).

Pure numpy. ``scores`` are (N,), higher is better; ``labels`` (N,) are 0 or 1; ``groups`` (N,) are user ids of
any kind. An undefined metric (no positives, no user with both labels) is NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_SMALLEST: Final = 1e-7  # distance of clipped probabilities from 0 and 1
_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS


def auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """P(a positive scores above a negative), a tie counting half; ``weights`` (N,) of rows."""
    order = _Order(scores, labels)
    return order.auc(np.ones(order.size) if weights is None else _floats(weights)[order.rows])


def grouped_auc(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike) -> float:
    """Mean AUC within each user, over users with both labels, weighted by their number of rows (Zhu et al.
    2017, arXiv:1706.06978, equation 10)."""
    _, each, rows = auc_by_group(scores, labels, groups)
    return float(np.average(each, weights=rows)) if len(each) else float("nan")


def list_metrics(scores: ArrayLike, labels: ArrayLike, requests: ArrayLike, k: int = 10) -> dict[str, float]:
    """Means over the requests with a positive and a negative: AUC, nDCG, reciprocal rank of the first
    positive, whether a positive is among the first ``k``, and the share of positives there."""
    score, label = _floats(scores), _floats(labels)
    _, group = np.unique(np.asarray(requests), return_inverse=True)
    rank_P, group_P = _ranks_of_positives(score, label, group)
    mixed = np.bincount(group_P, minlength=len(label)) < np.bincount(group, minlength=len(label))
    rank_P, group_P = rank_P[mixed[group_P]], group_P[mixed[group_P]]
    _, request_P, own = np.unique(group_P, return_inverse=True, return_counts=True)  # positives
    near = rank_P <= k
    ideal = np.cumsum(1 / np.log2(np.arange(k) + 2))[np.minimum(own, k) - 1]
    gain = np.bincount(request_P[near], 1 / np.log2(rank_P[near] + 1), len(own))
    first = rank_P[np.diff(request_P, prepend=-1) != 0]
    values = {
        "auc": auc_by_group(score, label, group)[1],
        f"ndcg@{k}": gain / ideal,
        "mrr": 1 / first,
        f"hit@{k}": (first <= k).astype(np.float64),
        f"recall@{k}": np.bincount(request_P[near], minlength=len(own)) / own,
    }
    means = {name: float(x.mean()) if len(x) else float("nan") for name, x in values.items()}
    return {"requests": len(own)} | means


def log_loss(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean −log probability of the observed label, in nats."""
    p = np.clip(_floats(probabilities), _SMALLEST, 1 - _SMALLEST)
    y = _floats(labels)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p))) if p.size else float("nan")


def normalized_entropy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Log loss divided by that of always predicting the base rate (He et al. 2014): useful below 1."""
    y = _floats(labels)
    rate = float(np.mean(y)) if y.size else 0.0
    if not 0 < rate < 1:
        return float("nan")
    return log_loss(probabilities, y) / log_loss(np.full(y.shape, rate), y)


def calibration(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Expected positives per observed positive: 1 is right, above 1 is too confident."""
    positives = float(np.sum(_floats(labels)))
    return float(np.sum(_floats(probabilities))) / positives if positives else float("nan")


@dataclass(frozen=True)
class Interval:
    """A difference with its bootstrap interval; significant if the interval excludes 0."""

    difference: float
    low: float
    high: float
    level: float
    samples: int


def paired_auc_interval(
    ours: ArrayLike, theirs: ArrayLike, labels: ArrayLike, users: ArrayLike, *, samples: int = 500,
    level: float = 0.95, seed: int = 0,
) -> Interval:  # fmt: skip
    """AUC(ours) − AUC(theirs) on the same rows, with the percentile interval of a bootstrap over users.

    It resamples users, not rows, because one user's rows aren't independent. Deterministic by seed.
    """
    a, b = _Order(ours, labels), _Order(theirs, labels)
    if a.size != b.size:
        raise ValueError(f"ours has {a.size} rows, theirs {b.size}: compare the same rows")
    unique_users, user = np.unique(np.asarray(users), return_inverse=True)
    count = len(unique_users)
    if count == 0:
        return Interval(float("nan"), float("nan"), float("nan"), level, 0)
    ones = np.ones(a.size)
    user_of_a, user_of_b = user[a.rows], user[b.rows]
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(samples):
        draw = generator.integers(0, count, count)
        times = np.bincount(draw, minlength=count).astype(np.float64)
        differences.append(a.auc(times[user_of_a]) - b.auc(times[user_of_b]))
    finite = np.array(differences)[np.isfinite(differences)]
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail]) if finite.size else (np.nan, np.nan)
    return Interval(a.auc(ones) - b.auc(ones), float(low), float(high), level, len(finite))


def days(time_ms: ArrayLike, utc_offset_h: float = 0.0) -> NDArray[np.int64]:
    """Days since 1970 in a time zone (8.0 for Beijing), (N,)."""
    return (np.asarray(time_ms, np.int64) + round(utc_offset_h * _HOUR_MS)) // _DAY_MS


def by_day(
    metric: Callable[..., Any], time_ms: ArrayLike, *arrays: ArrayLike, utc_offset_h: float = 0.0
) -> dict[str, Any]:
    """``metric(*arrays)`` for the rows of each day, by ISO date, in order."""
    day = days(time_ms, utc_offset_h)
    columns = [np.asarray(array) for array in arrays]
    return {
        str(np.datetime64(int(date), "D")): metric(*(column[day == date] for column in columns))
        for date in np.unique(day)
    }


class _Order:
    """Rows in the order of their scores, sorted once for many weightings."""

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        score, label = _floats(scores), _floats(labels)
        if score.shape != label.shape:
            raise ValueError(f"scores have the shape {score.shape}, labels {label.shape}")
        self.size = score.size
        self.rows = np.argsort(score, kind="stable")
        label = label[self.rows]
        self._negative = 1 - label
        self._positive = np.flatnonzero(label > 0)
        starts = np.flatnonzero(np.diff(score[self.rows], prepend=np.nan) != 0)
        sizes = np.diff(np.append(starts, self.size))
        # Start and end of the rows that tie with each positive.
        self._from = np.repeat(starts, sizes)[self._positive]
        self._to = self._from + np.repeat(sizes, sizes)[self._positive]

    def auc(self, weights: Floats) -> float:
        """The AUC if the i-th row in this order counts ``weights[i]`` times."""
        below = np.concatenate([[0.0], np.cumsum(weights * self._negative)])
        positive = weights[self._positive]
        pairs = positive.sum() * below[-1]
        if pairs <= 0:
            return float("nan")
        # Not a dot product: BLAS starts threads for it, which costs ten times the sum on a busy machine.
        return float((positive * (below[self._from] + below[self._to])).sum() / 2 / pairs)


def auc_by_group(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike
) -> tuple[NDArray[Any], Floats, Floats]:
    """Groups with both labels, sorted, and their AUC and numbers of rows."""
    score, label = _floats(scores), _floats(labels)
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    order = np.lexsort((score, group))
    score, label, group = score[order], label[order], group[order]
    new_group = np.diff(group, prepend=-1) != 0
    new_tie = new_group | (np.diff(score, prepend=-np.inf) != 0)
    rank = _mean_ranks(new_tie)
    starts = np.flatnonzero(new_group)
    if not len(starts):
        return names, np.zeros(0), np.zeros(0)
    total = np.diff(np.append(starts, score.size)).astype(np.float64)
    positives = np.add.reduceat(label, starts)
    # Ranks run through all groups: subtract those before the group's first row.
    above = np.add.reduceat(rank * label, starts) - starts * positives
    pairs = positives * (total - positives)
    both = pairs > 0
    each = (above - positives * (positives + 1) / 2)[both] / pairs[both]
    return names[both], each, total[both]


def _ranks_of_positives(
    score: Floats, label: Floats, group: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank from 1 and group of each positive, by group and rank. Ties are in a fixed random order, so that no
    metric gains from the order of rows."""
    ties = np.random.default_rng(0).permutation(len(label))
    order = np.lexsort((ties, -score, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1) != 0)
    rank = np.arange(len(order)) + 1 - np.repeat(starts, np.diff(np.append(starts, len(order))))
    positive = np.flatnonzero(label[order] > 0)
    return rank[positive], group[order][positive]


def _mean_ranks(new_tie: NDArray[np.bool_]) -> Floats:
    """Ranks from 1 of rows in order; ties share their mean rank."""
    starts = np.flatnonzero(new_tie)
    sizes = np.diff(np.append(starts, new_tie.size))
    return np.repeat(starts + (sizes + 1) / 2, sizes)


def _floats(values: ArrayLike) -> Floats:
    array = np.asarray(values, np.float64)
    if array.size and not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"row {row} is {array[row]}, expected finite numbers")
    return array


# Score bins: counts of probabilities that add up over lanes, steps and model lines. A bin is a tenth of a
# logit wide, from −6 to 6, with one more at either end. Pairs within a bin count half in the AUC, which costs
# it less than 0.002 (tests/recsys/model/test_score_bins.py). B examples, N bins.
_EDGES: Final = np.linspace(-6.0, 6.0, 121)
BINS: Final = len(_EDGES) + 1


def bins_of(probabilities_B: NDArray[np.floating]) -> NDArray[np.int64]:
    """The bin of each probability, 0 to BINS − 1."""
    p = np.clip(probabilities_B.astype(np.float64), _SMALLEST, 1 - _SMALLEST)
    return np.searchsorted(_EDGES, np.log(p) - np.log1p(-p)).astype(np.int64)


def bin_weights(bins_B: NDArray[np.int64], weights_B: NDArray[np.floating]) -> dict[int, float]:
    """Weight by non-empty bin."""
    total = np.bincount(bins_B, weights_B.astype(np.float64), BINS)
    return {int(n): float(total[n]) for n in np.flatnonzero(total)}


def auc_of(all_N: Floats, positives_N: Floats) -> float:
    """P(a positive lies above a negative), half if they share a bin; NaN if one label is missing."""
    negatives_N = all_N - positives_N
    pairs = positives_N.sum() * negatives_N.sum()
    if pairs <= 0:
        return float("nan")
    below_N = np.cumsum(negatives_N) - negatives_N
    return float((positives_N * (below_N + negatives_N / 2)).sum() / pairs)
