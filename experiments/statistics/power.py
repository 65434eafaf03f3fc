"""How many users an experiment needs, or what it can find: for the very interval that it will be judged by.

A sequential test finds an effect at one of many looks, and how much the looks help depends on how they hang
together: where the same users come again with habits of their own, a later look says less that is new. So
power isn't a formula of the variance at the end. What is needed is the covariance K of log R between looks,
for one user; from a log it is read off directly (``covariance``), else users are taken to come once
(``single_visit_covariance``). The process of looks is then drawn as a Gaussian one with that covariance and the effect, and
the share of draws that ever leaves the interval is the power.
"""

# U users, T looks, S draws

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_DRAWS: Final = 20_000  # a power of 0.8 is then known to 0.006
_HALVINGS: Final = 40


def covariance(numerators_UT: Floats, denominators_UT: Floats) -> Floats:
    """K (T, T), of sums up to each look: Cov(ψ_s, ψ_t) over all users who came by the last look. Divided by
    their number it is the covariance of log R. ArmUsers who haven't come by a look have 0 there."""
    above, below = numerators_UT.mean(0), denominators_UT.mean(0)
    if not ((above > 0).all() and (below > 0).all()):
        raise ValueError("at a look nothing was counted yet, expected looks that begin later")
    psi_UT = numerators_UT / above - denominators_UT / below
    out: Floats = psi_UT.T @ psi_UT / len(psi_UT)
    return out


def single_visit_covariance(variance: float, looks: int) -> Floats:
    """K of users of whom an equal share comes before each look, and never again. ``variance``: of ψ, so the
    squared coefficient of variation where the metric is for each user."""
    seen = np.arange(1, looks + 1) / looks
    out: Floats = variance / np.maximum.outer(seen, seen)
    return out


class SequentialPower:
    """Drawn courses of an experiment at its looks, from which power is read off for any users and effect.

    Raises ValueError where users don't differ at a look.
    """

    def __init__(self, covariance_TT: Floats, alpha: float, eta: float, seed: int = 0) -> None:
        if not (np.diag(covariance_TT) > 0).all():
            raise ValueError("a look has no variance, expected users who differ")
        self._alpha, self._eta = alpha, eta
        self._variance_T = np.diag(covariance_TT)
        values, vectors = np.linalg.eigh(covariance_TT)  # it may be nearly singular
        root_TT = vectors * np.sqrt(np.maximum(values, 0.0))
        draw = np.random.default_rng(seed)
        self._error_ST = draw.normal(size=(_DRAWS, len(root_TT))) @ root_TT.T

    def power(self, users: Sequence[float], effect: float) -> Floats:
        """The probability (T,) that an effect is found at a look or before. ``users``: of treatment and of
        control, in all; a relative ``effect`` of 0.02 is 2 % more. Of no effect: that any is found."""
        scale = 1 / users[0] + 1 / users[1]
        information_T = 1 / (self._variance_T * scale)
        grown_T = information_T + self._eta
        squared_T = grown_T * (np.log(grown_T / self._eta) - 2 * math.log(self._alpha))
        radius_T = np.sqrt(squared_T) / information_T
        found_ST = self._error_ST * math.sqrt(scale) + math.log1p(effect)
        found_ST = np.abs(found_ST) if effect == 0 else math.copysign(1, effect) * found_ST
        out: Floats = np.maximum.accumulate(found_ST > radius_T, axis=1).mean(0)
        return out

    def users_needed(self, shares: tuple[float, float], effect: float, wanted: float = 0.8) -> int:
        """The users of both arms together, by the last look, with which the effect is found with probability
        ``wanted``. ``shares``: of treatment and control."""
        _check(effect != 0, "effect", effect, "a relative effect other than 0")
        _check(0 < wanted < 1, "power", wanted, "a probability between 0 and 1")
        whole = sum(shares)

        def enough(total: float) -> bool:
            arms = (total * shares[0] / whole, total * shares[1] / whole)
            return bool(self.power(arms, effect)[-1] >= wanted)

        return math.ceil(_least(enough, 10.0))

    def smallest_effect(self, users: Sequence[float], wanted: float = 0.8) -> float:
        """The least relative effect that so many users find with probability ``wanted``."""
        _check(0 < wanted < 1, "power", wanted, "a probability between 0 and 1")
        return _least(lambda effect: bool(self.power(users, effect)[-1] >= wanted), 1e-5)


def _least(holds: Callable[[float], bool], start: float) -> float:
    """The least value for which it holds, found by doubling, then by halving in the logarithm."""
    high = start
    while not holds(high):
        high *= 2
        _check(high < 1e15, "what is needed", high, "something that can be reached")
    low = high / 2
    for _ in range(_HALVINGS):
        if high / low < 1.001:
            break
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}")
