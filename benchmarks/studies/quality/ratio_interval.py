"""Ratio of two means over the same units, with a bootstrap interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_SAMPLES, _LEVEL, _SEED = 2_000, 0.95, 0


@dataclass(frozen=True)
class RatioInterval:
    """A ratio with its interval; significant if the interval excludes 1."""

    ratio: float
    low: float
    high: float


def paired_ratio_interval(ours: ArrayLike, theirs: ArrayLike) -> RatioInterval:
    """mean(ours) / mean(theirs) over units (N,), with the 95 % percentile interval of a bootstrap over units;
    NaN if theirs is 0."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"ours has {a.size} units, theirs {b.size}: compare the same units")
    if not a.size or not b.sum():
        return RatioInterval(float("nan"), float("nan"), float("nan"))
    drawn = np.random.default_rng(_SEED).integers(0, a.size, (_SAMPLES, a.size))
    below = b[drawn].sum(1)
    ratios = a[drawn].sum(1)[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return RatioInterval(float(a.sum() / b.sum()), float(low), float(high))
