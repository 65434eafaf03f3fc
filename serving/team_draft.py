"""One list that two policies draw in turns (experiments/interleaving.py says whose turn it is, and why).

Both draw from the same candidates, each by its own scores, exploration, caps and nearness, given all that
stands above, whoever picked it. So a policy that is drafted against itself gives the very list that it would
have given alone. The propensity is P(item at this rank | ranks above and whose they are): where a coin
decides the mean of both chances, else the chance of whose turn it is.
"""

from typing import Final

import numpy as np

from experiments.interleaving import NOBODY, Draft
from recsys.hashing import uniform
from serving.list_walk import Walk, seats
from serving.selection import Ballot, Drawn

_RANK: Final = 1.0  # the propensity of an item that is fixed to its rank


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
    turns = Draft(request_id, teams, seed)
    walks = tuple(Walk(ballot, n) for ballot in ballots)
    pinned = ballots[0].pinned(n)
    waiting = int((pinned >= 0).sum())
    positions, propensities, trial = list[int](), list[float](), list[bool]()
    offered, whose, drawers = 0, list[str](), list[int]()
    for rank in range(min(n, len(ballots[0]))):
        seat = seats(pinned, rank, waiting, all(walk.ended for walk in walks))
        if seat >= 0:
            position, chance, by_quota, team = int(pinned[seat]), _RANK, False, NOBODY
            pinned[seat], waiting, met, side = -1, waiting - 1, False, 0
        elif all(walk.ended for walk in walks):
            break
        else:
            draw = uniform(seed, request_id, rank)
            position, chance, by_quota, met, team, side = _pick(walks, turns, draw)
            for walk in walks:
                walk.take(position)
        positions.append(position)
        propensities.append(chance)
        trial.append(by_quota)
        whose.append(team)
        drawers.append(side)
        offered += met
    names = [cap.name for cap in ballots[0].caps]
    closed = dict(zip(names, walks[0].closed.tolist(), strict=True))
    return Drawn(
        np.array(positions, np.int64),
        np.array(propensities),
        np.array(trial, np.bool_),
        offered,
        closed,
        tuple(whose),
        tuple(drawers),
    )


def _pick(
    walks: tuple[Walk, ...], turns: Draft, draw: float
) -> tuple[int, float, bool, bool, str, int]:
    """Position, propensity, whether it is the quota's, whether something was on trial, the team, who drew."""
    steps = [None if walk.ended else walk.step() for walk in walks]
    whole = None not in steps
    side = turns.turn() if whole else int(steps[0] is None)
    step = steps[side]
    assert step is not None
    position, by_quota = step.pick(draw)
    if whole and turns.tied:
        both = [float(its.total_N[position]) for its in steps if its is not None]
        chance = 0.5 * (both[0] + both[1])
    else:
        chance = float(step.total_N[position])
    team = turns.picked(side) if whole else NOBODY
    return position, chance, by_quota, step.on_trial, team, side
