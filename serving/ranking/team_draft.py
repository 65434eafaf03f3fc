"""One list that two policies draw in turns (experiments/statistics/interleaving.py says whose turn it is, and why).

Both draw from the same candidates, each by its own scores, exploration, caps and nearness, given all that
stands above, whoever picked it. So a policy that is drafted against itself gives the very list that it would
have given alone, and shares all of it evenly. The propensity is P(item at this rank | ranks above and whose
they are): where a coin decides the mean of both chances, else the chance of whose turn it is.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from experiments.statistics.interleaving import NOBODY, TeamDraft, shares
from recsys.events.hashing import uniform
from serving.ranking.selection import Ballot, Drawn
from serving.ranking.slate_propensities import Walk, seats

_RANK: Final = 1.0  # the propensity of an item that is fixed to its rank


@dataclass(frozen=True)
class _Pick:
    """One rank. ``side``: who drew it. ``chances``: how likely control and treatment were each to pick it;
    none of a rank that is nobody's."""

    position: int
    propensity: float
    team: str = NOBODY
    side: int = 0
    by_quota: bool = False
    on_trial: bool = False
    chances: tuple[float, ...] = ()


def draft(
    ballots: tuple[Ballot, Ballot],
    n: int,
    teams: tuple[str, str],
    *,
    request_id: str,
    seed: int = 0,
) -> Drawn:
    """Up to ``n`` ranks. Both ballots have the same candidates, and the same items fixed to ranks, which are
    nobody's. So is, from there on, all that is drawn once either policy has nothing left."""
    n = max(n, 0)
    turns = TeamDraft(request_id, teams, seed)
    walks = tuple(Walk(ballot, n) for ballot in ballots)
    pinned = ballots[0].pinned(n)
    waiting = int((pinned >= 0).sum())
    picks = list[_Pick]()
    for rank in range(min(n, len(ballots[0]))):
        seat = seats(pinned, rank, waiting, all(walk.ended for walk in walks))
        if seat >= 0:
            picks.append(_Pick(int(pinned[seat]), _RANK))
            pinned[seat], waiting = -1, waiting - 1
        elif all(walk.ended for walk in walks):
            break
        else:
            picks.append(_pick(walks, turns, uniform(seed, request_id, rank)))
            for walk in walks:
                walk.take(picks[-1].position)
    names = [cap.name for cap in ballots[0].caps]
    return Drawn(
        np.array([its.position for its in picks], np.int64),
        np.array([its.propensity for its in picks], np.float64),
        np.array([its.by_quota for its in picks], np.bool_),
        sum(its.on_trial for its in picks),
        dict(zip(names, walks[0].closed.tolist(), strict=True)),
        tuple(its.team for its in picks),
        _shares(picks),
        tuple(its.side for its in picks),
    )


def _pick(walks: tuple[Walk, ...], turns: TeamDraft, draw: float) -> _Pick:
    """Who is next draws."""
    steps = [None if walk.ended else walk.step() for walk in walks]
    able = [step for step in steps if step is not None]
    side = turns.turn() if len(able) == len(walks) else int(steps[0] is None)
    step = steps[side]
    assert step is not None
    position, by_quota = step.pick(draw)
    chances = tuple(float(its.total_N[position]) for its in able)
    if len(able) < len(walks):
        return _Pick(position, chances[0], NOBODY, side, by_quota, step.on_trial)
    chance = 0.5 * sum(chances) if turns.tied else chances[side]
    return _Pick(position, chance, turns.picked(side), side, by_quota, step.on_trial, chances)


def _shares(picks: list[_Pick]) -> tuple[float, ...]:
    """By rank, 0 of what is nobody's."""
    theirs = [its for its in picks if its.chances]
    chances_R2 = np.array([its.chances for its in theirs]).reshape(-1, 2)
    found = iter(shares(chances_R2, [its.side for its in theirs]).tolist())
    return tuple(next(found) if its.chances else 0.0 for its in picks)
