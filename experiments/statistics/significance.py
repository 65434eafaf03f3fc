"""Confidence sequences for a mean: bounds that hold at all times at once, so that repeated looks cost
nothing.

Values of one user are dependent, so the bounded sum is over users' centred sums, and its variance process V
is estimated as a cluster-robust variance (Liang and Zeger 1986). For a sum with variance process V the
one-sided normal mixture (Robbins 1970; Howard et al. 2021, equation 14) crosses

    u(V) = sqrt( 2 (V + η) · log( 1 + sqrt((V + η) / η) / (2 α) ) )

at any time with probability α at most; with an estimated V this holds in the limit (Waudby-Smith et al. 2021,
asymptotic confidence sequences). η only sets the V at which the bound is tightest.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CLUSTERS = 4096  # accumulators shared by users' hashes: bounded memory, and variances only grow
# Clusters, by (Σ w)² / Σ w² (Kish 1965), before bounds are finite: V can't tell how a large one differs.
LEAST_EFFECTIVE = 5.0


@dataclass(frozen=True)
class AnytimeEstimate:
    """A mean with two always-valid bounds, each with probability 1 − α. ``weight``: mostly a number of
    examples. NaN and infinite bounds without data."""

    mean: float = math.nan
    low: float = -math.inf
    high: float = math.inf
    weight: float = 0.0

    @property
    def text(self) -> str:
        """Text for the reason of a decision."""
        return f"{self.mean:+.5f} ({self.low:+.5f} to {self.high:+.5f})"


def crossing(variance: float, alpha: float, eta: float) -> float:
    """u(V), which a sum with this variance ever exceeds with probability ``alpha`` at most."""
    total = variance + eta
    return math.sqrt(2 * total * math.log1p(math.sqrt(total / eta) / (2 * alpha)))


def tightest_at(variance: float, alpha: float) -> float:
    """The η at which u(V) is nearly least at this V (Howard et al. 2021, proposition 3)."""
    inner = 2 * math.log(1 / (2 * alpha))
    return variance / (inner + math.log1p(inner))


class ClusteredMean:
    """Mean of a stream of weighted values in clusters (users, blocks). ``tight_at``: total weight at which
    the bounds are tightest. ``at_least``: clusters before bounds are finite."""

    def __init__(self, alpha: float, tight_at: float = 5_000, at_least: int = 30) -> None:
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha is {alpha}, expected a probability between 0 and 0.5")
        self.alpha, self._tight_at, self._at_least = alpha, tight_at, at_least
        self._sums: Floats = np.zeros(CLUSTERS)
        self._weights: Floats = np.zeros(CLUSTERS)

    def add(self, clusters: NDArray[np.int64], values: Floats, weights: Floats | None = None) -> None:
        """Adds values (N,) of clusters (N,), which may repeat; weights are 1 by default."""
        size = len(self._sums)
        at = clusters.astype(np.uint64) % np.uint64(size)
        weight = np.ones(len(values)) if weights is None else weights
        self._sums += np.bincount(at, values * weight, size)
        self._weights += np.bincount(at, weight, size)

    @property
    def weight(self) -> float:
        return float(self._weights.sum())

    def estimate(self) -> AnytimeEstimate:
        weight = self.weight
        if not weight:
            return AnytimeEstimate()
        mean = float(self._sums.sum() / weight)
        seen = self._weights > 0
        variance = float(((self._sums[seen] - mean * self._weights[seen]) ** 2).sum())
        few = weight**2 < LEAST_EFFECTIVE * float((self._weights**2).sum())
        if few or np.count_nonzero(self._weights) < self._at_least or not variance > 0:
            return AnytimeEstimate(mean, weight=weight)
        eta = tightest_at(variance / weight * self._tight_at, self.alpha)
        radius = crossing(variance, self.alpha, eta) / weight
        return AnytimeEstimate(mean, mean - radius, mean + radius, weight)
