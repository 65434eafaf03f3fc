"""Two rankers in one list: team-draft interleaving (Radlinski, Kurup, Joachims 2008), and what credits say.

As captains pick teams, so two rankers fill a list: who has fewer picks is next, and a coin decides where they
have as many. Each pick is what that ranker would show at this rank, given all that stands above; whoever put
an item there is credited with what the viewer does with it. Both rankers meet the same viewer, list and
moment, so a difference shows with far fewer lists than between two groups of users. Coins are hashes of the
request's id: a list can be made again, and nobody keeps a generator.

**Shares.** Which of the two a coin let pick says nothing of the viewer, who sees only the list. So bounds are
of shared credits: each has of an item the chance that it was who picked it, given the list (``shares``;
marginalization of Hofmann, Whiteson, de Rijke 2011, here in closed form). By Rao and Blackwell such a credit
has the mean of the other and never more variance; rankers that agree share evenly, and add no noise. Only
pairs are shared: of one item alone, a ranker that explores less would have a little more of nearly all, and
nothing of the few that make up for it, so until these came it would look better for certain. In a pair what
one item leans to one side, the other leans to the other. Which of the two earned more of one user is still
told by picks.

The ratio of the two credits isn't the effect that the better ranker would have alone: each list has half of
either. It says which is better, and how surely.
"""

# U users, L lists

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from experiments.statistics.effect import (
    AT_LEAST,
    LEAST_COUNT,
    ArmUsers,
    Effect,
    eta_of,
    paired_effect,
)
from experiments.statistics.sample_ratio import SampleRatio, sample_ratio
from recsys.events.hashing import uniform

Floats = NDArray[np.float64]
NOBODY: Final = ""  # the team of a rank that one ranker couldn't have competed for
_EVEN: Final = 2.0  # of a sign test: any share of users who gave more is as likely
BETTER, WORSE, OPEN, BROKEN = "better", "worse", "open", "broken"


@dataclass
class TeamDraft:
    """Whose turn it is, of two teams by name; the control is the first."""

    request_id: str
    teams: tuple[str, str]
    seed: int = 0
    picks: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def tied(self) -> bool:
        """Whether a coin decides."""
        return self.picks[0] == self.picks[1]

    def turn(self) -> int:
        """0 or 1. The same until somebody has picked."""
        if self.tied:
            return int(uniform(self.seed, self.request_id, "team", self.picks[0]) >= 0.5)
        return int(self.picks[0] > self.picks[1])

    def picked(self, team: int) -> str:
        """Counts a pick; the team's name."""
        self.picks[team] += 1
        return self.teams[team]


def pick_shares(chances_R2: Floats, sides_R: Sequence[int]) -> Floats:
    """P(the treatment picked it | the list), (R,), of picks in the order of a draft. ``chances_R2``: how
    likely control and treatment were each to pick it there; ``sides_R``: who did.

    Picks come in pairs, of which a coin gives one to each, so the two ways to have made a pair are weighed
    against each other. The last pick of an odd number is its picker's alone, and so is each of a pair whose
    chances are 0 in double precision.
    """
    out = np.asarray(sides_R, np.float64).copy()
    pairs = len(out) // 2 * 2
    first_P2, then_P2 = chances_R2[0:pairs:2], chances_R2[1:pairs:2]
    treatment_first_P, control_first_P = (first_P2[:, a] * then_P2[:, 1 - a] for a in (1, 0))
    both_P = treatment_first_P + control_first_P
    known = both_P > 0
    out[0:pairs:2][known] = treatment_first_P[known] / both_P[known]
    out[1:pairs:2][known] = control_first_P[known] / both_P[known]
    return out


@dataclass(frozen=True)
class ArmCredits:
    """Of each user: ``picked_U2``, what the items earned that each arm picked, control first; ``shared_U2``,
    the same by shares; and ``lists_U``. ``first_picks``: lists by who picked first, which a fair coin makes
    as many."""

    picked_U2: Floats
    shared_U2: Floats
    lists_U: NDArray[np.int64]
    first_picks: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Preference:
    """How much more the treatment earned in the same lists, relatively, by shares; bounds and ``p`` hold
    however often one looks. ``wins``: users of whom the treatment, the control, and neither earned more by
    picks; ``sign_p``: of a sign test over them, for one look.

    There are no bounds where fewer than 20 users gave the picks of either any credit, or make up what either
    has more of. ``p`` is then that of a sign test for any look, which decides below 0.001: so that two tests
    are hardly more often wrong than one.
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
    """What the credits say as of now. ``find``: the relative difference at which bounds are tightest."""
    picked_U2, its = credits.picked_U2, Effect()
    # A share of a credit is none to count, and many small ones can't tell how large a seldom one is.
    if min(*_givers(picked_U2), *_leaning(credits.shared_U2)) >= LEAST_COUNT:
        shared = ArmUsers(credits.shared_U2[:, 1], credits.shared_U2[:, 0])
        its = paired_effect(shared, alpha, eta_of(find, alpha))
    won, lost = (int((picked_U2[:, a] > picked_U2[:, 1 - a]).sum()) for a in (1, 0))
    coins = sample_ratio(credits.first_picks, (0.5, 0.5))
    enough, bounded = len(picked_U2) >= AT_LEAST, math.isfinite(its.relative)
    signs = sample_ratio((won, lost) if enough else (0, 0), (0.5, 0.5), weight=_EVEN)
    if coins.alarm:
        verdict, why = BROKEN, _broken(coins)
    elif bounded:
        verdict, why = _by_bounds(its)
    elif signs.alarm:
        verdict, why = _by_signs(signs)
    else:
        verdict, why = OPEN, _missing(credits)
    return Preference(
        users=len(picked_U2),
        lists=int(credits.lists_U.sum()),
        earned=(float(credits.shared_U2[:, 1].sum()), float(credits.shared_U2[:, 0].sum())),
        relative=its.relative,
        low=its.low,
        high=its.high,
        p=its.p if bounded else signs.p,
        wins=(won, lost, len(picked_U2) - won - lost),
        sign_p=float(binomtest(won, won + lost).pvalue) if won + lost else 1.0,
        coins=coins,
        verdict=verdict,
        why=why,
    )


def _broken(coins: SampleRatio) -> str:
    return f"first picks are {coins.counts}, p {coins.p:.1e}: lists are lost or changed"


def _by_bounds(its: Effect) -> tuple[str, str]:
    told = f"{its.relative:+.2%} ({its.low:+.2%} to {its.high:+.2%})"
    if its.low > 0:
        return BETTER, f"the treatment earned more in the same lists: {told}"
    if its.high < 0:
        return WORSE, f"the treatment earned less in the same lists: {told}"
    return OPEN, f"not known to differ yet: {told}"


def _by_signs(signs: SampleRatio) -> tuple[str, str]:
    won, lost = signs.counts
    return BETTER if won > lost else WORSE, (
        f"{won} users gave more to the treatment, {lost} to the control (sign test, p {signs.p:.1e} at any "
        "look); how much more isn't known"
    )


def _givers(picked_U2: Floats) -> tuple[int, int]:
    """ArmUsers who gave control and treatment any credit."""
    control, treatment = np.count_nonzero(picked_U2, axis=0).tolist()
    return control, treatment


def _leaning(shared_U2: Floats) -> tuple[float, float]:
    """Of how many users what control has more of is made up, and what the treatment has: (Σ d)² / Σ d², as
    Kish (1965) counts unequal weights."""
    differs_U = shared_U2[:, 1] - shared_U2[:, 0]
    sides = (np.maximum(-differs_U, 0.0), np.maximum(differs_U, 0.0))
    control, treatment = (float(its.sum() ** 2 / max((its**2).sum(), 1e-300)) for its in sides)
    return control, treatment


def _missing(credits: ArmCredits) -> str:
    """Why there are no bounds."""
    users, (control, treatment) = len(credits.picked_U2), _givers(credits.picked_U2)
    if users < AT_LEAST:
        return f"{users} users, expected {AT_LEAST} or more"
    if min(control, treatment) >= LEAST_COUNT:
        if (credits.shared_U2[:, 0] == credits.shared_U2[:, 1]).all():
            return "both rank alike: every item was as likely to be picked by either"
        fewer, more = _leaning(credits.shared_U2)
        return (
            f"what the control has more of comes from some {fewer:.0f} users, what the treatment has from "
            f"{more:.0f}, expected {LEAST_COUNT} or more each"
        )
    return (
        f"{treatment} users gave the treatment any credit and {control} the control, expected {LEAST_COUNT} "
        "or more each"
    )
