"""One list that two policies draw in turns; experiments/statistics/interleaving.py decides the turns.

Both draw from the same candidates, each by its own scores, exploration, caps and diversity, given all items
above, whoever picked them. A policy that is drafted against itself gives the list that it would give alone,
and shares it evenly. The propensity is P(item at this rank | ranks above and their teams): the mean of both
probabilities where a coin decides, else the probability of the policy whose turn it is.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from experiments.statistics.interleaving import NOBODY, TeamDraft, pick_shares
from recsys.events.hashing import uniform
from serving.request import Slate
from serving.selection.sampling import Indices, SamplingInput
from serving.selection.slate_propensities import PinnedRanks, SlateWalk

_PINNED: Final = 1.0  # propensity of an item that is pinned to its rank


@dataclass(frozen=True)
class _Pick:
    """One rank, drawn by ``side``. ``probabilities``: of control and treatment, if a team owns the rank."""

    position: int
    propensity: float
    team: str = NOBODY
    side: int = 0
    by_quota: bool = False
    on_trial: bool = False
    probabilities: tuple[float, ...] = ()


def draft_slate(
    inputs: tuple[SamplingInput, SamplingInput],
    n: int,
    teams: tuple[str, str],
    *,
    request_id: str,
    seed: int = 0,
) -> Slate:
    """Drafts up to ``n`` ranks. Both inputs have the same candidates and pinned items. No team owns pinned
    items, nor any rank from where on either policy has nothing left."""
    n = max(n, 0)
    turns = TeamDraft(request_id, teams, seed)
    walks, pinned = tuple(SlateWalk(given, n) for given in inputs), PinnedRanks(inputs[0], n)
    picks = list[_Pick]()
    for rank in range(min(n, len(inputs[0]))):
        ended = all(walk.ended for walk in walks)
        position = pinned.pop(rank, ended)
        if position >= 0:
            picks.append(_Pick(position, _PINNED))
        elif ended:
            break
        else:
            above_R = np.array([pick.position for pick in picks], np.int64)
            picks.append(_pick(walks, turns, above_R, uniform(seed, request_id, rank)))
            for walk in walks:
                walk.place(picks[-1].position)
    names = [cap.name for cap in inputs[0].caps]
    return Slate(
        np.array([pick.position for pick in picks], np.int64),
        np.array([pick.propensity for pick in picks], np.float64),
        np.array([pick.by_quota for pick in picks], np.bool_),
        sum(pick.on_trial for pick in picks),
        dict(zip(names, walks[0].closed.tolist(), strict=True)),
        tuple(pick.team for pick in picks),
        _shares(picks),
        tuple(pick.side for pick in picks),
    )


def _pick(walks: tuple[SlateWalk, ...], turns: TeamDraft, above_R: Indices, draw: float) -> _Pick:
    steps = [None if walk.ended else walk.step(above_R) for walk in walks]
    able = [step for step in steps if step is not None]
    side = turns.turn() if len(able) == len(walks) else int(steps[0] is None)
    step = steps[side]
    assert step is not None
    position, by_quota = step.pick(draw)
    probabilities = tuple(float(s.total_N[position]) for s in able)
    if len(able) < len(walks):
        return _Pick(position, probabilities[0], NOBODY, side, by_quota, step.on_trial)
    propensity = 0.5 * sum(probabilities) if turns.tied else probabilities[side]
    team = turns.picked(side)
    return _Pick(position, propensity, team, side, by_quota, step.on_trial, probabilities)


def _shares(picks: list[_Pick]) -> tuple[float, ...]:
    """Share of the treatment by rank, 0 where no team owns it."""
    owned = [pick for pick in picks if pick.probabilities]
    probabilities_R2 = np.array([pick.probabilities for pick in owned]).reshape(-1, 2)
    shares = iter(pick_shares(probabilities_R2, [pick.side for pick in owned]).tolist())
    return tuple(next(shares) if pick.probabilities else 0.0 for pick in picks)
