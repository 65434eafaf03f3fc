"""The difference of two arms in a ratio, with an interval that holds however often one looks.

All is on the logarithm of the ratio R = Σ Y / Σ X, so that effects are relative and an arm and its control
swap by a change of sign.

**Delta method over users** (Deng, Knoblich, Lu 2018, section 3). A user's items aren't independent, users
are. The influence of user i on log R is ψ_i = Y_i / Ȳ − X_i / X̄, and Var(log R) = Var(ψ) / n.

**CUPED** (Deng, Xu, Kohavi, Walker 2013; several covariates as in Lin 2013). What a user did before they were
given the arm can't be its effect. With covariates C and one θ for both arms (of the regression of ψ on C
within arms), log R − θ·(C̄ − the mean of both arms) has the same expectation and less variance.

**Always valid** (Robbins 1970; Howard et al. 2021, the two-sided normal mixture; Waudby-Smith et al. 2021 for
estimated variances). With information I = 1 / variance of the difference D, S = D·I has variance I, and

    E(I) = sqrt(η / (I + η)) · exp( S² / (2 (I + η)) )

is at least 1/α at any time with probability α at most where there is no effect. So 1/E is a p-value at all
times, and D ± sqrt((I + η) · log((I + η) / (η α²))) / I an interval at all times.

ArmUsers who come again with habits of their own make the increments of S dependent. They then depend positively
(more than Brownian motion at time I does), and by Slepian's inequality such a process crosses no more often.
That argument is about Gaussian processes, which sums over users are in the limit only: hence ``AT_LEAST``.
η must not depend on what is seen: it comes from the smallest effect that the experiment is to find.
"""

# U users of an arm, K covariates

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
AT_LEAST: Final = 100  # users of an arm before a bound is finite
LEAST_COUNT: Final = 20  # of them with a numerator that isn't 0


@dataclass(frozen=True)
class ArmUsers:
    """The users of one arm, each once: also those with nothing at all. ``covariates_UK``: of before."""

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
        below = float(self.denominators_U.sum())
        return float(self.numerators_U.sum()) / below if below > 0 else math.nan


@dataclass(frozen=True)
class Effect:
    """How much higher the treatment's ratio is, relatively: 0.02 is 2 % more.

    ``low`` and ``high`` hold at all times together with probability 1 − α; ``p`` is valid at any time.
    ``saved``: the share of the variance that covariates took away. Infinite bounds and p = 1 where too few
    users were seen.
    """

    treatment: float = math.nan
    control: float = math.nan
    relative: float = math.nan
    low: float = -1.0
    high: float = math.inf
    p: float = 1.0
    users: tuple[int, int] = (0, 0)  # treatment, control
    saved: float = 0.0
    error: float = math.inf  # the standard error of the logarithm of 1 + relative

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def eta_of(find: float, alpha: float) -> float:
    """The η for which the interval is tightest when it is just as wide as to find an effect of ``find``.

    The tightest is where I / η = k solves k = 2 log(1/α) + log(1 + k) (Howard et al. 2021, proposition 3).
    """
    if not find > 0:
        raise ValueError(f"find is {find}, expected a relative effect above 0, e.g. 0.02")
    k = 2 * math.log(1 / alpha)
    for _ in range(50):
        k = 2 * math.log(1 / alpha) + math.log1p(k)
    information = (1 + 1 / k) * (math.log1p(k) + 2 * math.log(1 / alpha)) / math.log1p(find) ** 2
    return information / k


def radius(information: float, alpha: float, eta: float) -> float:
    """Half of the interval's width."""
    grown = information + eta
    return math.sqrt(grown * (math.log(grown / eta) - 2 * math.log(alpha))) / information


def p_value(difference: float, information: float, eta: float) -> float:
    """1 / E, at most 1."""
    grown = information + eta
    log_e = 0.5 * math.log(eta / grown) + (difference * information) ** 2 / (2 * grown)
    return min(1.0, math.exp(-log_e)) if log_e > 0 else 1.0


def influence(users: ArmUsers) -> Floats:
    """ψ (U,): what each user adds to n times the error of log R."""
    above, below = users.numerators_U, users.denominators_U
    out: Floats = above / above.mean() - below / below.mean()
    return out


def effect(treatment: ArmUsers, control: ArmUsers, alpha: float, eta: float) -> Effect:
    """The effect as of now. Covariates are used where both arms have as many of them."""
    found = Effect(treatment.ratio, control.ratio, users=(len(treatment), len(control)))
    if not (_enough(treatment) and _enough(control)):
        return found
    difference = math.log(treatment.ratio / control.ratio)
    ours, theirs = influence(treatment), influence(control)
    plain = ours.var() / len(ours) + theirs.var() / len(theirs)
    variance = plain
    if treatment.covariates_UK.size and control.covariates_UK.size:
        a_UK, b_UK = treatment.covariates_UK, control.covariates_UK
        theta_K = pooled_theta(ours, a_UK, theirs, b_UK)
        adjusted = difference - float((a_UK.mean(0) - b_UK.mean(0)) @ theta_K)
        ours, theirs = ours - a_UK @ theta_K, theirs - b_UK @ theta_K
        less = ours.var() / len(ours) + theirs.var() / len(theirs)
        if less < plain:
            difference, variance = adjusted, less
    if not variance > 0:  # all users are alike: nothing is known of how they vary
        return found
    information = 1 / float(variance)
    half = radius(information, alpha, eta)
    return Effect(
        treatment.ratio,
        control.ratio,
        math.expm1(difference),
        math.expm1(difference - half),
        math.expm1(min(difference + half, 700.0)),
        p_value(difference, information, eta),
        (len(treatment), len(control)),
        1 - float(variance / plain),
        math.sqrt(variance),
    )


def paired_effect(users: ArmUsers, alpha: float, eta: float) -> Effect:
    """How much higher the numerators are than the denominators of the same users, as where both are credits
    earned in the same lists. As for two arms, but that ψ is each user's own difference."""
    found = Effect(users=(len(users), len(users)))
    if not _enough(users) or np.count_nonzero(users.denominators_U) < LEAST_COUNT:
        return found
    variance = float(influence(users).var()) / len(users)
    if not variance > 0:
        return found
    information, difference = 1 / variance, math.log(users.ratio)
    half = radius(information, alpha, eta)
    return Effect(
        float(users.numerators_U.mean()),
        float(users.denominators_U.mean()),
        math.expm1(difference),
        math.expm1(difference - half),
        math.expm1(min(difference + half, 700.0)),
        p_value(difference, information, eta),
        found.users,
        error=math.sqrt(variance),
    )


def pooled_theta(
    psi_U: Floats, covariates_UK: Floats, psi_V: Floats, covariates_VK: Floats
) -> Floats:
    """θ (K,): least squares of ψ on the covariates, each less the mean of its own arm."""
    centred = np.concatenate(
        [covariates_UK - covariates_UK.mean(0), covariates_VK - covariates_VK.mean(0)]
    )
    psi = np.concatenate([psi_U - psi_U.mean(), psi_V - psi_V.mean()])
    scale = centred.std(0)
    scale[scale == 0] = 1.0
    scaled = centred / scale
    # By the normal equations: K is 3, and a covariate that says nothing new gets 0 from the pseudo-inverse.
    out: Floats = (np.linalg.pinv(scaled.T @ scaled, rcond=1e-10) @ (scaled.T @ psi)) / scale
    return out


def holm(p_values: list[float]) -> list[float]:
    """Adjusted p-values in the same order (Holm 1979). Any false one is ≤ α with probability α at most."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def _enough(users: ArmUsers) -> bool:
    positive = int(np.count_nonzero(users.numerators_U))
    return len(users) >= AT_LEAST and positive >= LEAST_COUNT and users.ratio > 0
