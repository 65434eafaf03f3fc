"""What another policy would have earned on logged lists, from the chances that the log's own policy had.

**What is estimated**: the mean reward of a list, were its first R ranks drawn by the target policy π and not
by the logged one μ, for the same requests in the same state (session, counters, weights). With the ratio
w_r = π(a_r | a_1 … a_r-1) / μ(a_r | a_1 … a_r-1) of the item a_r that stood at rank r, and W_r = w_1 ⋯ w_r,

    IPS    Σ_r  E[ W_r R_r ]
    SNIPS  Σ_r  E[ W_r R_r ] / E[ W_r ]
    DR     Σ_r  E[ W_r-1 v_r + W_r (R_r - q_r) ]
    SNDR   Σ_r  E[ W_r-1 v_r ] / E[ W_r-1 ] + E[ W_r (R_r - q_r) ] / E[ W_r ]

where R_r is the reward at rank r, q_r what a model said of it, and v_r = Σ_a π(a | a_1 … a_r-1) q_r(a).
IPS and SNIPS with such prefixes are those of McInerney et al. 2020 ("reward interaction"), DR is the cascade
estimator of Kiyohara et al. 2022; of one rank they are those of Horvitz and Thompson 1952, Swaminathan and
Joachims 2015, and Dudík, Langford, Li 2011. Where a list of the target ends before the
logged one, so it does for sure, given what stands above: w is 1 from there on, and R, q and v are 0.

All need that a reward hangs on its item and on those above it, not on those below, and that μ could have
drawn whatever π draws. IPS and DR have then no bias; the others one that vanishes as lists grow many, for
less variance. A model that is wrong costs variance, never truth.

**Intervals**: a user's lists aren't independent, users are. An estimate's influence is summed by user, and
its variance is that of these sums (the delta method with clusters; Liang and Zeger 1986). Quantiles are
Student's with as many degrees of freedom as there are effective users, less one.
"""

# L lists, R ranks, U users

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]
IPS, SNIPS, DR, SNDR = "ips", "snips", "dr", "sndr"
LEAST_ESS: Final = 100.0  # lists, at every rank: below, a handful of lists decides
LEAST_USERS: Final = 30
MOST_UNSUPPORTED: Final = (
    0.001  # of what the target would show: the log never had a chance to show it
)
_OFF: Final = 4.0  # standard errors that the mean weight may be away from 1


@dataclass(frozen=True)
class WeightedLists:
    """Logged lists, as the target policy would weigh them.

    ``ratios_LR``: w, 1 where a list had no such rank. ``rewards_LR``: 0 where nothing was shown.
    ``predicted_LR`` and ``expected_LR``: q and v, all 0 without a model. ``unsupported_LR``: the chance that the
    target gave, at this rank, to items for which the log's policy had none. ``users_L``: whose lists.
    ``ended_LR``: where the target's list has ended above: w is 1, q and v are 0, and what the log shows there
    earns it nothing. None: nowhere.
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
            its = getattr(self, name).shape
            if its != shape:
                raise ValueError(f"{name} has shape {its}, expected {shape} as ratios_LR has")
        if self.ended_LR is not None and self.ended_LR.shape != shape:
            raise ValueError(f"ended_LR has shape {self.ended_LR.shape}, expected {shape}")
        if self.users_L.shape != shape[:1]:
            raise ValueError(f"users_L has shape {self.users_L.shape}, expected {shape[:1]}")
        if not np.isfinite(self.ratios_LR).all() or (self.ratios_LR < 0).any():
            raise ValueError(
                "ratios_LR has numbers below 0 or not finite, expected π / μ with μ > 0"
            )

    def __len__(self) -> int:
        return len(self.users_L)

    @property
    def earned_LR(self) -> Floats:
        """The rewards at ranks that the target's list has, (L, R)."""
        return self.rewards_LR if self.ended_LR is None else self.rewards_LR * ~self.ended_LR

    def first(self, ranks: int) -> "WeightedLists":
        """The same lists, of which no more than so many ranks are judged."""
        return WeightedLists(
            self.ratios_LR[:, :ranks],
            self.rewards_LR[:, :ranks],
            self.predicted_LR[:, :ranks],
            self.expected_LR[:, :ranks],
            self.unsupported_LR[:, :ranks],
            self.users_L,
            None if self.ended_LR is None else self.ended_LR[:, :ranks],
        )


@dataclass(frozen=True)
class PolicyValue:
    """A value for each list, with an interval of probability 1 - α. ``lift``: over what the log's own policy
    earned, by the same lists. ``worth_lists``: how many lists of the target's own would tell as much."""

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
    """Whether the log can answer. ``ess_R``: (Σ W)² / Σ W² at each rank, in lists. ``mean_weight_R``: 1 but
    for chance where the log could have shown all. ``unsupported``: of the target's ranks, the share that
    would go to items for which the log had no chance."""

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
        """Why the log can't answer, how much is missing, and what helps; empty where it can."""
        found = []
        if self.users < LEAST_USERS:
            found.append(
                f"lists are of {self.users} users, expected {LEAST_USERS} or more: take a longer time range"
            )
        if self.unsupported > MOST_UNSUPPORTED:
            found.append(
                f"{self.unsupported:.2%} of what the policy would show had no chance on the log, expected "
                f"{MOST_UNSUPPORTED:.2%} at most: log with more exploration (policy.explore), or let the "
                "policy differ less (caps, rules that let in what was shut out)"
            )
        if self.lists and self.ess < LEAST_ESS:
            rank = int(self.ess_R.argmin())
            good = int((self.ess_R >= LEAST_ESS).cumprod().sum())
            few = f"judge {good} ranks only (ranks: {good}), " if good else ""
            found.append(
                f"the effective sample size is {self.ess:.0f} of {self.lists} lists at rank {rank + 1}, "
                f"expected {LEAST_ESS:.0f} or more: {few}take a longer time range, log with more "
                "exploration, or judge a policy that differs less"
            )
        off_R = np.abs(self.mean_weight_R - 1) > _OFF * self.mean_error_R
        if not found and off_R.any():
            rank = int(off_R.argmax())
            found.append(
                f"the mean weight at rank {rank + 1} is {self.mean_weight_R[rank]:.3f}, expected 1 within "
                f"{_OFF * self.mean_error_R[rank]:.3f}: the policy shows what the log all but never showed, "
                "or propensities are wrong; log with more exploration, and see `recsys explain`"
            )
        return tuple(found)


def weights_of(lists: WeightedLists) -> Floats:
    """W (L, R)."""
    return lists.ratios_LR.cumprod(axis=1)


def support(lists: WeightedLists) -> Support:
    """What the log can say of the target policy at all; look here before at any estimate."""
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
    """IPS, SNIPS, DR and SNDR. Raises ValueError where there are no lists."""
    if not len(lists) or not lists.ratios_LR.size:
        raise ValueError("there are 0 lists, expected one or more: take a longer time range")
    users_L = _numbered(lists.users_L)
    logged_L = lists.rewards_LR.sum(1)
    base = float(logged_L.mean())
    found = []
    for name, (value, influence_L) in _valued(lists).items():
        quantile = float(student.ppf(1 - alpha / 2, _freedom(influence_L, users_L)))
        own = _error(influence_L, users_L)
        lift = _error(influence_L - (logged_L - base), users_L)
        plain = _error(logged_L - base, users_L)
        worth = len(lists) * (plain / own) ** 2 if own > 0 else math.inf
        found.append(
            PolicyValue(
                name,
                value,
                value - quantile * own,
                value + quantile * own,
                own,
                value - base,
                value - base - quantile * lift,
                value - base + quantile * lift,
                worth,
            )  # fmt: skip
        )
    return tuple(found)


def by_rank(lists: WeightedLists) -> Floats:
    """SNIPS at each rank (R,): the reward that the target would have earned there."""
    weights_LR = weights_of(lists)
    out: Floats = _ratio((weights_LR * lists.earned_LR).sum(0), weights_LR.sum(0))
    return out


def _valued(lists: WeightedLists) -> dict[str, tuple[float, Floats]]:
    """By estimator: the value, and the influence of each list on L times its error, (L,)."""
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
    """Σ_r of the weighted means, and the influence of each list."""
    means_R = _ratio((weights_LR * values_LR).sum(0), weights_LR.sum(0))
    scale_R = _ratio(np.ones(len(means_R)), weights_LR.mean(0))
    influence_L = (weights_LR * (values_LR - means_R) * scale_R).sum(1)
    return float(means_R.sum()), influence_L


def _before(weights_LR: Floats) -> Floats:
    """W of the ranks above: 1 at the first."""
    out: Floats = np.concatenate([np.ones((len(weights_LR), 1)), weights_LR[:, :-1]], axis=1)
    return out


def _ratio(above: Floats, below: Floats) -> Floats:
    out: Floats = np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
    return out


def _error(influence_L: Floats, users_L: NDArray[np.int64]) -> float:
    """The standard error of a mean whose lists' influences these are, clustered by user."""
    sums_U = np.bincount(users_L, influence_L)
    users = len(sums_U)
    small = users / (users - 1) if users > 1 else 1.0
    return math.sqrt(small * float((sums_U**2).sum())) / len(influence_L)


def _freedom(influence_L: Floats, users_L: NDArray[np.int64]) -> float:
    """Degrees of freedom of a variance that a few users may dominate: of squares s, (Σ s)² / Σ s² - 1."""
    squares_U = np.bincount(users_L, influence_L) ** 2
    below = float((squares_U**2).sum())
    return max(1.0, float(squares_U.sum()) ** 2 / below - 1) if below > 0 else 1.0


def _numbered(users_L: NDArray[np.int64]) -> NDArray[np.int64]:
    out: NDArray[np.int64] = np.unique(users_L, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return out
