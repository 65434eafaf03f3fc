"""Relative effect of a treatment on a ratio metric, with an always-valid confidence interval.

All is on the logarithm of the ratio R = Σ Y / Σ X, so that effects are relative and swapping the arms changes
the sign.

**Delta method over users** (Deng, Knoblich, Lu 2018, section 3). Users are independent, their items are not.
The influence of user i on log R is ψ_i = Y_i / Ȳ − X_i / X̄, and Var(log R) = Var(ψ) / n.

**CUPED** (Deng, Xu, Kohavi, Walker 2013; several covariates as in Lin 2013). An arm can't affect a user's
behaviour before exposure. With covariates C from that time and one θ for both arms (regression of ψ on C
within arms), log R − θ·(C̄ − the mean of both arms) has the same expectation and less variance.

**Confidence sequence** (Robbins 1970; Howard et al. 2021, the two-sided normal mixture; Waudby-Smith et al.
2021 for estimated variances). With information I = 1 / variance of the difference D, S = D·I has variance I,
and

    E(I) = sqrt(η / (I + η)) · exp( S² / (2 (I + η)) )

is at least 1/α at any time with probability α at most if there is no effect. So 1/E is an always-valid
p-value, and D ± sqrt((I + η) · log((I + η) / (η α²))) / I an always-valid interval.

Returning users with habits of their own make the increments of S positively dependent (more than Brownian
motion at time I), and by Slepian's inequality such a process crosses no more often. That argument needs
Gaussian processes, which sums over users are only in the limit: hence ``AT_LEAST``. η must not depend on the
data: it comes from the smallest effect that the experiment is to find.
"""

# U users of an arm, K covariates

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
AT_LEAST: Final = 100  # users of an arm before a bound is finite
LEAST_COUNT: Final = 20  # effective number of them behind a numerator or denominator


@dataclass(frozen=True)
class ArmUsers:
    """All users of one arm, each once, also inactive ones. ``covariates_UK``: from before exposure."""

    numerators_U: Floats
    denominators_U: Floats
    covariates_UK: Floats = field(default_factory=lambda: np.zeros((0, 0)))

    def __post_init__(self) -> None:
        sizes = {len(self.numerators_U), len(self.denominators_U)}
        sizes |= {len(self.covariates_UK)} if self.covariates_UK.size else set()
        if len(sizes) > 1:
            raise ValueError(f"arrays have {sorted(sizes)} users, expected as many in each")

    def __len__(self) -> int:
        return len(self.numerators_U)

    @property
    def ratio(self) -> float:
        denominator = float(self.denominators_U.sum())
        return float(self.numerators_U.sum()) / denominator if denominator > 0 else math.nan

    @property
    def are_enough(self) -> bool:
        """Whether the normal approximation holds."""
        sums = (self.numerators_U, self.denominators_U)
        return len(self) >= AT_LEAST and min(map(effective_number, sums)) >= LEAST_COUNT


@dataclass(frozen=True)
class Effect:
    """Relative difference of the treatment's ratio: 0.02 is 2 % more. ``low`` and ``high`` form an
    always-valid 1 − α interval; ``p`` is always valid. ``saved``: variance reduction by covariates. Infinite
    bounds and p = 1 for too few users."""

    treatment: float = math.nan
    control: float = math.nan
    relative: float = math.nan
    low: float = -1.0
    high: float = math.inf
    p: float = 1.0
    users: tuple[int, int] = (0, 0)  # treatment, control
    saved: float = 0.0
    error: float = math.inf  # standard error of log(1 + relative)

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def interval(self) -> str:
        """The effect and its bounds as text."""
        return f"{self.relative:+.2%} ({self.low:+.2%} to {self.high:+.2%})"


def eta_of(find: float, alpha: float) -> float:
    """The η at which the interval is tightest when it is just narrow enough to find an effect of ``find``:
    where I / η = k solves k = 2 log(1/α) + log(1 + k) (Howard et al. 2021, proposition 3)."""
    if not find > 0:
        raise ValueError(f"find is {find}, expected a relative effect above 0, e.g. 0.02")
    k = 2 * math.log(1 / alpha)
    for _ in range(50):
        k = 2 * math.log(1 / alpha) + math.log1p(k)
    information = (1 + 1 / k) * (math.log1p(k) + 2 * math.log(1 / alpha)) / math.log1p(find) ** 2
    return information / k


def radius(information: float, alpha: float, eta: float) -> float:
    total = information + eta
    return math.sqrt(total * (math.log(total / eta) - 2 * math.log(alpha))) / information


def p_value(difference: float, information: float, eta: float) -> float:
    total = information + eta
    log_e = 0.5 * math.log(eta / total) + (difference * information) ** 2 / (2 * total)
    return min(1.0, math.exp(-log_e)) if log_e > 0 else 1.0


def effective_number(amounts_U: Floats) -> float:
    """(Σ x)² / Σ x² (Kish 1965). Near 1, one user has all: the variance can't tell the others' ratio."""
    return max(0.0, float(amounts_U.sum())) ** 2 / max(float((amounts_U**2).sum()), 1e-300)


def influence(users: ArmUsers) -> Floats:
    """ψ (U,): each user's contribution to n times the error of log R."""
    numerators, denominators = users.numerators_U, users.denominators_U
    out: Floats = numerators / numerators.mean() - denominators / denominators.mean()
    return out


def effect(treatment: ArmUsers, control: ArmUsers, alpha: float, eta: float) -> Effect:
    """Current effect, with CUPED if both arms have covariates and they reduce the variance."""
    means, sizes = (treatment.ratio, control.ratio), (len(treatment), len(control))
    if not (treatment.are_enough and control.are_enough):
        return Effect(*means, users=sizes)
    difference = math.log(treatment.ratio / control.ratio)
    psi_T, psi_C = influence(treatment), influence(control)
    plain = psi_T.var() / len(psi_T) + psi_C.var() / len(psi_C)
    variance = plain
    if treatment.covariates_UK.size and control.covariates_UK.size:
        covariates_TK, covariates_CK = treatment.covariates_UK, control.covariates_UK
        theta_K = pooled_theta(psi_T, covariates_TK, psi_C, covariates_CK)
        shift = float((covariates_TK.mean(0) - covariates_CK.mean(0)) @ theta_K)
        psi_T, psi_C = psi_T - covariates_TK @ theta_K, psi_C - covariates_CK @ theta_K
        reduced = psi_T.var() / len(psi_T) + psi_C.var() / len(psi_C)
        if reduced < plain:
            difference, variance = difference - shift, reduced
    saved = 1 - float(variance / plain) if variance > 0 else 0.0
    return _effect(means, sizes, difference, float(variance), alpha, eta, saved)


def paired_effect(users: ArmUsers, alpha: float, eta: float) -> Effect:
    """Relative difference of the numerators to the denominators of the same users, such as two credits earned
    in the same lists. As for two arms, but ψ is each user's own difference."""
    sizes = (len(users), len(users))
    givers = map(np.count_nonzero, (users.numerators_U, users.denominators_U))
    if len(users) < AT_LEAST or min(givers) < LEAST_COUNT:
        return Effect(users=sizes)
    variance = float(influence(users).var()) / len(users)
    if not variance > 0:
        return Effect(users=sizes)
    means = (float(users.numerators_U.mean()), float(users.denominators_U.mean()))
    return _effect(means, sizes, math.log(users.ratio), variance, alpha, eta)


def _effect(
    means: tuple[float, float], sizes: tuple[int, int], difference: float, variance: float, alpha: float,
    eta: float, saved: float = 0.0,
) -> Effect:  # fmt: skip
    """Effect of a log difference and its variance; without bounds if the variance is 0: all users are
    alike."""
    if not variance > 0:
        return Effect(*means, users=sizes)
    information = 1 / variance
    half = radius(information, alpha, eta)
    low, high = difference - half, min(difference + half, 700.0)
    bounds = (math.expm1(difference), math.expm1(low), math.expm1(high))
    p = p_value(difference, information, eta)
    return Effect(*means, *bounds, p, sizes, saved, math.sqrt(variance))


def pooled_theta(psi_U: Floats, covariates_UK: Floats, psi_V: Floats, covariates_VK: Floats) -> Floats:
    """θ (K,): least squares of ψ on the covariates, both centred within each arm."""
    groups = (covariates_UK, covariates_VK)
    centred = np.concatenate([group - group.mean(0) for group in groups])
    psi = np.concatenate([psi_U - psi_U.mean(), psi_V - psi_V.mean()])
    scale = centred.std(0)
    scale[scale == 0] = 1.0
    scaled = centred / scale
    # Normal equations, since K is 3; the pseudo-inverse gives redundant covariates 0.
    out: Floats = (np.linalg.pinv(scaled.T @ scaled, rcond=1e-10) @ (scaled.T @ psi)) / scale
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the same order (Holm 1979): the family-wise error rate is at most α."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
