"""Off-policy evaluation of a target policy on logged lists with propensities.

**Estimand**: the mean reward of a list if its first R ranks were drawn by the target policy π instead of the
logging policy μ, for the same requests in the same state (session, counters, weights). With the ratio w_r =
π(a_r | a_1 … a_r-1) / μ(a_r | a_1 … a_r-1) of the item a_r at rank r, and W_r = w_1 ⋯ w_r,

    IPS    Σ_r  E[ W_r R_r ]
    SNIPS  Σ_r  E[ W_r R_r ] / E[ W_r ]
    DR     Σ_r  E[ W_r-1 v_r + W_r (R_r - q_r) ]
    SNDR   Σ_r  E[ W_r-1 v_r ] / E[ W_r-1 ] + E[ W_r (R_r - q_r) ] / E[ W_r ]

where R_r is the reward at rank r, q_r a model's prediction of it, and v_r = Σ_a π(a | a_1 … a_r-1) q_r(a).
IPS and SNIPS with prefixes are those of McInerney et al. 2020 ("reward interaction"), DR is the cascade
estimator of Kiyohara et al. 2022; for one rank they are those of Horvitz and Thompson 1952, Swaminathan and
Joachims 2015, and Dudík, Langford, Li 2011. If the target's list ends before the logged one, it does so
surely, given the items above: w is 1 from there on, and R, q and v are 0.

Assumptions: a reward depends on its item and those above, not below, and μ could have drawn whatever π draws.
IPS and DR are then unbiased; the self-normalised ones have less variance and a bias that vanishes with many
lists. A wrong model costs variance, not bias.

**Intervals**: users are independent, their lists are not. Influences are summed by user, and the variance is
that of these sums (delta method with clusters; Liang and Zeger 1986). Quantiles are Student's, with the
effective number of users less one as degrees of freedom.
"""

# L lists, R ranks, U users

import math
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
IPS, SNIPS, DR, SNDR = "ips", "snips", "dr", "sndr"
LEAST_ESS: Final = 100.0  # lists, at every rank; with fewer, a handful of lists decides
LEAST_USERS: Final = 30
MAX_UNSUPPORTED: Final = 0.001  # of the target's items: those that the log could never show
_MAX_Z: Final = 4.0  # standard errors of the mean weight from 1


@dataclass(frozen=True)
class WeightedLists:
    """Logged lists, weighted for the target policy. ``users_L``: user of each list.

    ``ratios_LR``: w, 1 where a list had no such rank. ``rewards_LR``: 0 where nothing was shown.
    ``predicted_LR`` and ``expected_LR``: q and v, all 0 without a model. ``unsupported_LR``: the target's
    probability, at this rank, of items that the log's policy could not show. ``ended_LR``: where the target's
    list has ended above: w is 1, q and v are 0, and the logged reward doesn't count; None: nowhere.
    """

    ratios_LR: Floats
    rewards_LR: Floats
    predicted_LR: Floats
    expected_LR: Floats
    unsupported_LR: Floats
    users_L: NDArray[np.int64]
    ended_LR: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        shape = self.ratios_LR.shape
        for name in ("rewards_LR", "predicted_LR", "expected_LR", "unsupported_LR"):
            actual = getattr(self, name).shape
            if actual != shape:
                raise ValueError(f"{name} has shape {actual}, expected {shape} as ratios_LR has")
        if self.ended_LR is not None and self.ended_LR.shape != shape:
            raise ValueError(f"ended_LR has shape {self.ended_LR.shape}, expected {shape}")
        if self.users_L.shape != shape[:1]:
            raise ValueError(f"users_L has shape {self.users_L.shape}, expected {shape[:1]}")
        if not np.isfinite(self.ratios_LR).all() or (self.ratios_LR < 0).any():
            raise ValueError("ratios_LR has numbers below 0 or not finite, expected π / μ, μ > 0")

    def __len__(self) -> int:
        return len(self.users_L)

    @property
    def earned_LR(self) -> Floats:
        """Rewards at ranks that the target's list has, (L, R)."""
        return self.rewards_LR if self.ended_LR is None else self.rewards_LR * ~self.ended_LR

    def first(self, ranks: int) -> "WeightedLists":
        """The same lists, cut to their first ranks."""
        cut: dict[str, Any] = {
            name: array[:, :ranks]
            for name, array in vars(self).items()
            if name.endswith("_LR") and array is not None
        }
        return replace(self, **cut)


@dataclass(frozen=True)
class PolicyValue:
    """Estimated reward per list with a 1 - α interval. ``lift``: over the logging policy on the same lists.
    ``worth_lists``: number of the target's own lists that would be as informative."""

    name: str
    value: float
    low: float
    high: float
    error: float
    lift: float
    lift_low: float
    lift_high: float
    worth_lists: float


@dataclass(frozen=True)
class Support:
    """Diagnostics of a log for a target policy. ``ess_R``: effective sample size (Σ W)² / Σ W² at each rank,
    in lists. ``mean_weight_R``: 1 except for chance with full support. ``unsupported``: share of the target's
    ranks with items that the log could not show."""

    lists: int
    users: int
    ess_R: Floats
    mean_weight_R: Floats
    mean_error_R: Floats
    unsupported: float

    @property
    def ess(self) -> float:
        return float(self.ess_R.min(initial=math.inf)) if self.lists else 0.0

    def problems(self) -> tuple[str, ...]:
        """Reasons why the log can't evaluate the policy, with remedies; empty if it can."""
        problems = []
        if self.users < LEAST_USERS:
            problems.append(
                f"lists are of {self.users} users, expected {LEAST_USERS} or more: take a longer time range"
            )
        if self.unsupported > MAX_UNSUPPORTED:
            problems.append(
                f"{self.unsupported:.2%} of what the policy would show had no chance on the log, expected "
                f"{MAX_UNSUPPORTED:.2%} at most: log with more exploration (policy.explore), or let the "
                "policy differ less (caps, limits)"
            )
        if self.lists and self.ess < LEAST_ESS:
            rank = int(self.ess_R.argmin())
            good = int((self.ess_R >= LEAST_ESS).cumprod().sum())
            few = f"judge {good} ranks only (ranks: {good}), " if good else ""
            problems.append(
                f"the effective sample size is {self.ess:.0f} of {self.lists} lists at rank {rank + 1}, "
                f"expected {LEAST_ESS:.0f} or more: {few}take a longer time range, log with more "
                "exploration, or judge a policy that differs less"
            )
        off_R = np.abs(self.mean_weight_R - 1) > _MAX_Z * self.mean_error_R
        if not problems and off_R.any():
            rank = int(off_R.argmax())
            problems.append(
                f"the mean weight at rank {rank + 1} is {self.mean_weight_R[rank]:.3f}, expected 1 within "
                f"{_MAX_Z * self.mean_error_R[rank]:.3f}: the policy shows what the log hardly showed, or "
                "propensities are wrong; log with more exploration, and see `recsys explain`"
            )
        return tuple(problems)


def weights_of(lists: WeightedLists) -> Floats:
    """Cumulative weights W (L, R)."""
    return lists.ratios_LR.cumprod(axis=1)


def diagnose_support(lists: WeightedLists) -> Support:
    """Diagnostics of the log; check them before any estimate."""
    weights_LR = weights_of(lists)
    count, ranks = weights_LR.shape
    users_L = _numbered(lists.users_L)
    if not count or not ranks:
        none = np.zeros(ranks)
        return Support(count, len(np.unique(users_L)), none, none, none, 0.0)
    squares_R = (weights_LR**2).sum(0)
    sums_R: Floats = weights_LR.sum(0)
    ess_R = _ratio(sums_R**2, squares_R)
    errors_R = np.array([_error(column, users_L) for column in (weights_LR - sums_R / count).T])
    gap = float((_before(weights_LR) * lists.unsupported_LR).sum() / weights_LR.size)
    users = int(users_L.max()) + 1
    return Support(count, users, ess_R, sums_R / count, errors_R, gap)


def estimates(lists: WeightedLists, alpha: float = 0.05) -> tuple[PolicyValue, ...]:
    """IPS, SNIPS, DR and SNDR estimates. Raises ValueError without lists."""
    from scipy.stats import t as student  # takes half a second: not in a replica

    if not len(lists) or not lists.ratios_LR.size:
        raise ValueError("there are 0 lists, expected one or more: take a longer time range")
    users_L = _numbered(lists.users_L)
    logged_L = lists.rewards_LR.sum(1)
    base = float(logged_L.mean())
    out = []
    for name, (value, influence_L) in _by_estimator(lists).items():
        quantile = float(student.ppf(1 - alpha / 2, _freedom(influence_L, users_L)))
        error = _error(influence_L, users_L)
        lift_error = _error(influence_L - (logged_L - base), users_L)
        logged_error = _error(logged_L - base, users_L)
        worth = len(lists) * (logged_error / error) ** 2 if error > 0 else math.inf
        bounds = (value - quantile * error, value + quantile * error)
        lift, half = value - base, quantile * lift_error
        out.append(PolicyValue(name, value, *bounds, error, lift, lift - half, lift + half, worth))
    return tuple(out)


def by_rank(lists: WeightedLists) -> Floats:
    """SNIPS at each rank (R,): the target's expected reward there."""
    weights_LR = weights_of(lists)
    out: Floats = _ratio((weights_LR * lists.earned_LR).sum(0), weights_LR.sum(0))
    return out


def _by_estimator(lists: WeightedLists) -> dict[str, tuple[float, Floats]]:
    """Value by estimator, and the influence of each list on L times its error, (L,)."""
    weights_LR = weights_of(lists)
    before_LR = _before(weights_LR)
    rest_LR = lists.earned_LR - lists.predicted_LR
    ips_L = (weights_LR * lists.earned_LR).sum(1)
    dr_L = (before_LR * lists.expected_LR + weights_LR * rest_LR).sum(1)
    snips, snips_L = _normalised(weights_LR, lists.earned_LR)
    expected, expected_L = _normalised(before_LR, lists.expected_LR)
    rest, rest_L = _normalised(weights_LR, rest_LR)
    ips, dr = float(ips_L.mean()), float(dr_L.mean())
    return {
        IPS: (ips, ips_L - ips),
        SNIPS: (snips, snips_L),
        DR: (dr, dr_L - dr),
        SNDR: (expected + rest, expected_L + rest_L),
    }


def _normalised(weights_LR: Floats, values_LR: Floats) -> tuple[float, Floats]:
    """Self-normalised Σ_r of weighted means, and the influence of each list."""
    means_R = _ratio((weights_LR * values_LR).sum(0), weights_LR.sum(0))
    scale_R = _ratio(np.ones(len(means_R)), weights_LR.mean(0))
    influence_L = (weights_LR * (values_LR - means_R) * scale_R).sum(1)
    return float(means_R.sum()), influence_L


def _before(weights_LR: Floats) -> Floats:
    """W of the rank above: 1 at the first."""
    out: Floats = np.concatenate([np.ones((len(weights_LR), 1)), weights_LR[:, :-1]], axis=1)
    return out


def _ratio(above: Floats, below: Floats) -> Floats:
    out: Floats = np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
    return out


def _error(influence_L: Floats, users_L: NDArray[np.int64]) -> float:
    """Standard error of a mean from its influences, clustered by user."""
    sums_U = np.bincount(users_L, influence_L)
    users = len(sums_U)
    correction = users / (users - 1) if users > 1 else 1.0
    return math.sqrt(correction * float((sums_U**2).sum())) / len(influence_L)


def _freedom(influence_L: Floats, users_L: NDArray[np.int64]) -> float:
    """Degrees of freedom if few users dominate the variance: for squares s, (Σ s)² / Σ s² - 1."""
    squares_U = np.bincount(users_L, influence_L) ** 2
    below = float((squares_U**2).sum())
    return max(1.0, float(squares_U.sum()) ** 2 / below - 1) if below > 0 else 1.0


def _numbered(users_L: NDArray[np.int64]) -> NDArray[np.int64]:
    out: NDArray[np.int64] = np.unique(users_L, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return out
