"""Team-draft interleaving of two rankers (Radlinski, Kurup, Joachims 2008), and the preference from credits.

Two rankers fill a list by turns: the one with fewer picks is next, and a coin (a hash of the request's id)
decides ties. Each pick is the item that the ranker would show at this rank, given the items above; its ranker
is credited with the viewer's engagement. A difference shows with far fewer lists than between groups.

**Shared credits.** Bounds are on shared credits: each ranker gets the probability that it picked the item,
given the list (``pick_shares``; marginalization of Hofmann, Whiteson, de Rijke 2011, here in closed form). By
Rao-Blackwell such a credit has the same mean and never more variance. Only pairs are shared: with single
items a ranker that explores less would get slightly more of nearly all items, and nothing of the few that
compensate. Wins per user are still counted by picks.

The ratio of the two credits isn't the effect that the better ranker would have alone, since each list is half
of either.
"""

# U users, R ranks, P pairs of picks

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.statistics.effect import (
    AT_LEAST,
    LEAST_COUNT,
    ArmUsers,
    Effect,
    effective_number,
    eta_of,
    paired_effect,
)
from experiments.statistics.sample_ratio import SampleRatio, sample_ratio
from recsys.events.hashing import uniform

Floats = NDArray[np.float64]
NOBODY: Final = ""  # team of a rank for which one ranker couldn't compete
_EVEN: Final = 2.0  # Dirichlet weight of the sign test: a uniform prior
BETTER, WORSE, OPEN, BROKEN = "better", "worse", "open", "broken"


@dataclass
class TeamDraft:
    """Turns of two teams by name, the control first."""

    request_id: str
    teams: tuple[str, str]
    seed: int = 0
    picks: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def tied(self) -> bool:
        """Whether a coin decides."""
        return self.picks[0] == self.picks[1]

    def turn(self) -> int:
        """Team whose turn it is, 0 or 1; the same until the next pick."""
        if self.tied:
            return int(uniform(self.seed, self.request_id, "team", self.picks[0]) >= 0.5)
        return int(self.picks[0] > self.picks[1])

    def picked(self, team: int) -> str:
        """Counts a pick; returns the team's name."""
        self.picks[team] += 1
        return self.teams[team]


def pick_shares(probabilities_R2: Floats, sides_R: Sequence[int]) -> Floats:
    """P(the treatment picked it | the list), (R,), of picks in draft order. ``probabilities_R2``: of control
    and treatment picking it there; ``sides_R``: who did.

    Picks come in pairs, one for each side in an order set by a coin; the two orders are weighed by
    probability. The last pick of an odd number belongs to its picker, and so do pairs with probability 0 in
    double precision.
    """
    out = np.asarray(sides_R, np.float64).copy()
    pairs = len(out) // 2 * 2
    first_P2, then_P2 = probabilities_R2[0:pairs:2], probabilities_R2[1:pairs:2]
    treatment_first_P, control_first_P = (first_P2[:, a] * then_P2[:, 1 - a] for a in (1, 0))
    both_P = treatment_first_P + control_first_P
    possible = both_P > 0
    out[0:pairs:2][possible] = treatment_first_P[possible] / both_P[possible]
    out[1:pairs:2][possible] = control_first_P[possible] / both_P[possible]
    return out


@dataclass(frozen=True)
class ArmCredits:
    """Credits by user: ``picked_U2`` of the items that each arm picked, control first; ``shared_U2`` by
    shares; ``lists_U``. ``first_picks``: lists by first picker, equal for a fair coin."""

    picked_U2: Floats
    shared_U2: Floats
    lists_U: NDArray[np.int64]
    first_picks: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Preference:
    """Relative difference of the treatment's shared credits to the control's in the same lists, with
    always-valid bounds and ``p``. ``wins``: users with more picked credit for the treatment, for the control,
    and for neither; ``sign_p``: of a sign test over them, for one look.

    There are no bounds if fewer than 20 users gave either arm's picks a credit, or make up either one's lead.
    ``p`` is then that of an always-valid sign test, which decides below 0.001: so that two tests are hardly
    more often wrong than one.
    """

    users: int
    lists: int
    earned: tuple[float, float]  # treatment, control
    relative: float
    low: float
    high: float
    p: float
    wins: tuple[int, int, int]
    sign_p: float
    coins: SampleRatio
    verdict: str
    why: str


def preference(credits: ArmCredits, alpha: float = 0.05, find: float = 0.02) -> Preference:
    """Current preference. ``find``: relative difference at which bounds are tightest."""
    from scipy.stats import binomtest  # takes half a second: not in a replica

    picked_U2, shared_U2, estimate = credits.picked_U2, credits.shared_U2, Effect()
    # Counts by picks, since shares of credits don't count, and many small ones hide the size of rare ones.
    if min(*_givers(picked_U2), *_effective_users(shared_U2)) >= LEAST_COUNT:
        users = ArmUsers(shared_U2[:, 1], shared_U2[:, 0])
        estimate = paired_effect(users, alpha, eta_of(find, alpha))
    won, lost = (int((picked_U2[:, a] > picked_U2[:, 1 - a]).sum()) for a in (1, 0))
    coins = sample_ratio(credits.first_picks, (0.5, 0.5))
    enough, bounded = len(picked_U2) >= AT_LEAST, math.isfinite(estimate.relative)
    signs = sample_ratio((won, lost) if enough else (0, 0), (0.5, 0.5), weight=_EVEN)
    if coins.alarm:
        counts = f"first picks are {coins.counts}, p {coins.p:.1e}"
        verdict, why = BROKEN, f"{counts}: lists are lost or changed"
    elif bounded:
        verdict, why = _by_bounds(estimate)
    elif signs.alarm:
        verdict = BETTER if won > lost else WORSE
        why = (
            f"{won} users gave more to the treatment, {lost} to the control (sign test, p {signs.p:.1e} at "
            "any look); how much more isn't known"
        )
    else:
        verdict, why = OPEN, _missing(credits)
    earned = (float(shared_U2[:, 1].sum()), float(shared_U2[:, 0].sum()))
    return Preference(
        users=len(picked_U2), lists=int(credits.lists_U.sum()), earned=earned, relative=estimate.relative,
        low=estimate.low, high=estimate.high, p=estimate.p if bounded else signs.p,
        wins=(won, lost, len(picked_U2) - won - lost),
        sign_p=float(binomtest(won, won + lost).pvalue) if won + lost else 1.0, coins=coins,
        verdict=verdict, why=why,
    )  # fmt: skip


def _by_bounds(estimate: Effect) -> tuple[str, str]:
    if estimate.low > 0:
        return BETTER, f"the treatment earned more in the same lists: {estimate.interval}"
    if estimate.high < 0:
        return WORSE, f"the treatment earned less in the same lists: {estimate.interval}"
    return OPEN, f"not known to differ yet: {estimate.interval}"


def _givers(picked_U2: Floats) -> tuple[int, int]:
    """Number of users who gave control and treatment any credit."""
    control, treatment = np.count_nonzero(picked_U2, axis=0).tolist()
    return control, treatment


def _effective_users(shared_U2: Floats) -> tuple[float, float]:
    """Effective number of users behind the control's lead and the treatment's."""
    difference_U = shared_U2[:, 1] - shared_U2[:, 0]
    control_U, treatment_U = np.maximum(-difference_U, 0.0), np.maximum(difference_U, 0.0)
    return effective_number(control_U), effective_number(treatment_U)


def _missing(credits: ArmCredits) -> str:
    """Reason why there are no bounds."""
    users, (control, treatment) = len(credits.picked_U2), _givers(credits.picked_U2)
    expected = f"expected {LEAST_COUNT} or more each"
    if users < AT_LEAST:
        return f"{users} users, expected {AT_LEAST} or more"
    if min(control, treatment) < LEAST_COUNT:
        givers = f"{treatment} users gave the treatment any credit and {control} the control"
        return f"{givers}, {expected}"
    if (credits.shared_U2[:, 0] == credits.shared_U2[:, 1]).all():
        return "both rank alike: every item was as likely to be picked by either"
    control_lead, treatment_lead = _effective_users(credits.shared_U2)
    return (
        f"what the control has more of comes from some {control_lead:.0f} users, what the treatment has from "
        f"{treatment_lead:.0f}, {expected}"
    )
