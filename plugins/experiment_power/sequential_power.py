"""Sequential power analysis: users needed, or smallest detectable effect, for the always-valid interval.

The benefit of looks depends on their correlation: returning users make later looks less informative. So power
needs the covariance K of log R between looks, for one user: from a log (``covariance``), or assuming that
each user comes once (``single_visit_covariance``). The looks are sampled as a Gaussian process with that
covariance and the effect; power is the share of samples that ever leave the interval.
"""

# U users, T looks, S samples

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.design import check
from experiments.statistics.effect import AT_LEAST, LEAST_COUNT

Floats = NDArray[np.float64]
_SAMPLES: Final = 20_000  # gives a power of 0.8 to within 0.006
_HALVINGS: Final = 40


def covariance(numerators_UT: Floats, denominators_UT: Floats) -> Floats:
    """K (T, T) from running sums: Cov(ψ_s, ψ_t) over all users who came by the last look, with 0 before they
    come. Divided by their number it is the covariance of log R."""
    means_T, bases_T = numerators_UT.mean(0), denominators_UT.mean(0)
    if not ((means_T > 0).all() and (bases_T > 0).all()):
        raise ValueError("at a look nothing was counted yet, expected looks that begin later")
    psi_UT = numerators_UT / means_T - denominators_UT / bases_T
    out: Floats = psi_UT.T @ psi_UT / len(psi_UT)
    return out


def single_visit_covariance(variance: float, looks: int) -> Floats:
    """K if an equal share of users comes before each look and never again. ``variance``: of ψ, so the squared
    coefficient of variation for a metric per user."""
    seen = np.arange(1, looks + 1) / looks
    out: Floats = variance / np.maximum.outer(seen, seen)
    return out


class SequentialPower:
    """Sampled courses of an experiment at its looks; gives the power for any users and effect. Raises
    ValueError if users don't differ at a look."""

    def __init__(self, covariance_TT: Floats, alpha: float, eta: float, seed: int = 0) -> None:
        if not (np.diag(covariance_TT) > 0).all():
            raise ValueError("a look has no variance, expected users who differ")
        self._alpha, self._eta = alpha, eta
        self._variance_T = np.diag(covariance_TT)
        values, vectors = np.linalg.eigh(covariance_TT)  # it may be nearly singular
        root_TT = vectors * np.sqrt(np.maximum(values, 0.0))
        random = np.random.default_rng(seed)
        self._error_ST = random.normal(size=(_SAMPLES, len(root_TT))) @ root_TT.T

    def power(self, users: Sequence[float], effect: float) -> Floats:
        """Probability (T,) of finding the effect by each look; for effect 0, of any false finding. ``users``:
        total of treatment and of control. ``effect``: relative, 0.02 is 2 % more."""
        scale = 1 / users[0] + 1 / users[1]
        information_T = 1 / (self._variance_T * scale)
        total_T = information_T + self._eta
        squared_T = total_T * (np.log(total_T / self._eta) - 2 * math.log(self._alpha))
        radius_T = np.sqrt(squared_T) / information_T
        difference_ST = self._error_ST * math.sqrt(scale) + math.log1p(effect)
        difference_ST = np.abs(difference_ST) if effect == 0 else math.copysign(1, effect) * difference_ST
        out: Floats = np.maximum.accumulate(difference_ST > radius_T, axis=1).mean(0)
        return out

    def users_needed(self, shares: tuple[float, float], effect: float, wanted: float = 0.8) -> int:
        """Users of both arms by the last look for the power ``wanted``, and for a report to have bounds.
        ``shares``: of treatment and control."""
        check(effect != 0, "effect", effect, "a relative effect other than 0")
        check(0 < wanted < 1, "power", wanted, "a probability between 0 and 1")
        whole = sum(shares)

        def enough(total: float) -> bool:
            arms = (total * shares[0] / whole, total * shares[1] / whole)
            return bool(self.power(arms, effect)[-1] >= wanted)

        return math.ceil(max(_least(enough, 10.0), self.least_users * whole / min(shares)))

    @property
    def least_users(self) -> float:
        """Users of an arm below which a report has no bounds. Effective users of a metric are about
        their number / (1 + the variance of ψ)."""
        return max(AT_LEAST, LEAST_COUNT * (1.0 + float(self._variance_T[-1])))

    def smallest_effect(self, users: Sequence[float], wanted: float = 0.8) -> float:
        """Smallest relative effect found with the power ``wanted``."""
        check(0 < wanted < 1, "power", wanted, "a probability between 0 and 1")
        return _least(lambda effect: bool(self.power(users, effect)[-1] >= wanted), 1e-5)


def _least(holds: Callable[[float], bool], start: float) -> float:
    """Least value for which it holds, by doubling, then bisection of the logarithm."""
    high = start
    while not holds(high):
        high *= 2
        check(high < 1e15, "what is needed", high, "something that can be reached")
    low = high / 2
    for _ in range(_HALVINGS):
        if high / low < 1.001:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
