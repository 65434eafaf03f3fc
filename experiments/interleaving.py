"""Two rankers in one list: team-draft interleaving (Radlinski, Kurup, Joachims 2008), and what credits say.

As captains pick teams, so two rankers fill a list: who has fewer picks is next, and a coin decides where they
have as many. Each pick is what that ranker would show at this rank, given all that stands above; whoever put
an item there is credited with what the viewer does with it. Both rankers meet the same viewer, list and
moment, so a difference shows with far fewer lists than between two groups of users. Coins are hashes of the
request's id: a list can be made again, and nobody keeps a generator.

The ratio of the two credits isn't the effect that the better ranker would have alone: each list has half of
either. It says which is better, and how surely.
"""

# U users, L lists

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from experiments.effect import AT_LEAST, LEAST_COUNT, Effect, Users, effect_within, eta_of
from experiments.sample_ratio import SampleRatio, sample_ratio
from recsys.hashing import uniform

Floats = NDArray[np.float64]
INTERLEAVED: Final = "interleaved"  # in a stamp, in place of the arm
NOBODY: Final = ""  # the team of a rank that one ranker couldn't have competed for
_EVEN: Final = 2.0  # of a sign test: any share of users who gave more is as likely
BETTER, WORSE, OPEN, BROKEN = "better", "worse", "open", "broken"


@dataclass
class Draft:
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


@dataclass(frozen=True)
class Credits:
    """Of each user: ``earned_U2``, control first; and ``lists_U``. ``first_picks``: lists by who picked
    first, which a fair coin makes as many."""

    earned_U2: Floats
    lists_U: NDArray[np.int64]
    first_picks: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Preference:
    """How much more the treatment earned in the same lists, relatively; bounds and ``p`` hold however often
    one looks. ``wins``: users of whom the treatment, the control, and neither earned more; ``sign_p``: of a
    sign test over them, for one look.

    Where fewer than 20 users gave either of them any credit there are no bounds. ``p`` is then that of a sign
    test for any look, which decides below 0.001: so that two tests are hardly more often wrong than one.
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


def preference(credits: Credits, alpha: float = 0.05, find: float = 0.02) -> Preference:
    """What the credits say as of now. ``find``: the relative difference at which bounds are tightest."""
    earned_U2 = credits.earned_U2
    its = effect_within(Users(earned_U2[:, 1], earned_U2[:, 0]), alpha, eta_of(find, alpha))
    won, lost = (int((earned_U2[:, a] > earned_U2[:, 1 - a]).sum()) for a in (1, 0))
    coins = sample_ratio(credits.first_picks, (0.5, 0.5))
    enough, bounded = len(earned_U2) >= AT_LEAST, math.isfinite(its.relative)
    signs = sample_ratio((won, lost) if enough else (0, 0), (0.5, 0.5), weight=_EVEN)
    if coins.alarm:
        verdict, why = BROKEN, _broken(coins)
    elif bounded:
        verdict, why = _by_bounds(its)
    elif signs.alarm:
        verdict, why = _by_signs(signs)
    else:
        verdict, why = OPEN, _missing(earned_U2)
    return Preference(
        users=len(earned_U2),
        lists=int(credits.lists_U.sum()),
        earned=(float(earned_U2[:, 1].sum()), float(earned_U2[:, 0].sum())),
        relative=its.relative,
        low=its.low,
        high=its.high,
        p=its.p if bounded else signs.p,
        wins=(won, lost, len(earned_U2) - won - lost),
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


def _missing(earned_U2: Floats) -> str:
    """Why there are no bounds."""
    if len(earned_U2) < AT_LEAST:
        return f"{len(earned_U2)} users, expected {AT_LEAST} or more"
    control, treatment = np.count_nonzero(earned_U2, axis=0).tolist()
    if min(control, treatment) >= LEAST_COUNT:
        return "all users are alike: nothing is known of how they vary"
    return (
        f"{treatment} users gave the treatment any credit and {control} the control, expected {LEAST_COUNT} "
        "or more each"
    )
