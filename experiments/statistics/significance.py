"""Bounds on a mean that hold at all times at once, so that looking at every step costs nothing.

The differences of one user aren't independent, so what is bounded is the sum over users of each user's
centred sum, whose variance process V is estimated as a cluster-robust variance is (Liang and Zeger 1986).
For a sum with variance process V the one-sided normal mixture (Robbins 1970; Howard et al. 2021, equation
14) crosses

    u(V) = sqrt( 2 (V + η) · log( 1 + sqrt((V + η) / η) / (2 α) ) )

at any time with probability α at most; with an estimated V this holds in the limit (Waudby-Smith et al.
2021, asymptotic confidence sequences). η says at which V the bound is tightest, and changes nothing else.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CLUSTERS = 4096  # users share an accumulator by their hash, so memory is bounded and variances grow


@dataclass(frozen=True)
class AnytimeEstimate:
    """A mean with bounds, each of which holds at all times with probability 1 − α. ``weight``: of what was
    seen, mostly a number of examples. NaN and infinite bounds where nothing was."""

    mean: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    weight: float = 0.0

    @property
    def told(self) -> str:
        """As it stands in a decision's reason."""
        return f"{self.mean:+.5f} ({self.low:+.5f} to {self.high:+.5f})"


def crossing(variance: float, alpha: float, eta: float) -> float:
    """u(V): what a sum with this variance exceeds at any time with probability ``alpha`` at most."""
    grown = variance + eta
    return math.sqrt(2 * grown * math.log1p(math.sqrt(grown / eta) / (2 * alpha)))


def tightest_at(variance: float, alpha: float) -> float:
    """The η at which u(V) is nearly the least at this V (Howard et al. 2021, proposition 3)."""
    inner = 2 * math.log(1 / (2 * alpha))
    return variance / (inner + math.log1p(inner))


class ClusteredMean:
    """The mean of a stream of weighted values that come in clusters (of a user, of a block).

    ``tight_at``: of how much weight the bounds are to be tightest. ``at_least``: clusters that must have been
    seen; until then bounds are infinite, for a variance of few is no variance.
    """

    def __init__(
        self,
        alpha: float,
        tight_at: float = 5_000,
        at_least: int = 30,
        clusters: int = CLUSTERS,
    ) -> None:
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha is {alpha}, expected a probability between 0 and 0.5")
        self.alpha, self._tight_at, self._at_least = alpha, tight_at, at_least
        self._sums: Floats = np.zeros(clusters)
        self._weights: Floats = np.zeros(clusters)

    def add(
        self, clusters: NDArray[np.int64], values: Floats, weights: Floats | None = None
    ) -> None:
        """Values (N,) of clusters (N,), which may come again; a value's weight is 1 without ``weights``."""
        size = len(self._sums)
        at = clusters.astype(np.uint64) % np.uint64(size)
        weight = np.ones(len(values)) if weights is None else weights
        self._sums += np.bincount(at, values * weight, size)
        self._weights += np.bincount(at, weight, size)

    @property
    def weight(self) -> float:
        return float(self._weights.sum())

    def estimate(self) -> AnytimeEstimate:
        """The mean as of now and its two bounds."""
        weight = self.weight
        if not weight:
            return AnytimeEstimate()
        mean = float(self._sums.sum() / weight)
        if np.count_nonzero(self._weights) < self._at_least:
            return AnytimeEstimate(mean, weight=weight)
        seen = self._weights > 0
        variance = float(((self._sums[seen] - mean * self._weights[seen]) ** 2).sum())
        if not variance > 0:  # all are equal: nothing is known of how they vary
            return AnytimeEstimate(mean, weight=weight)
        eta = tightest_at(variance / weight * self._tight_at, self.alpha)
        radius = crossing(variance, self.alpha, eta) / weight
        return AnytimeEstimate(mean, mean - radius, mean + radius, weight)
