"""A list drawn rank by rank, from outside: what chance each candidate has next, given all that stands above.

``serving.ranking.selection.draw`` draws a list in one go. This goes the same way in steps, for whoever must know more
than the list: the chances of all candidates along a list that another policy drew, or a list that two
policies draw in turns (serving/ranking/team_draft.py). The steps are the draw's own compiled ones, so the numbers are
the same to the last bit.
"""

# N candidates, R ranks

from dataclasses import dataclass

import numpy as np

from serving.ranking.draw_kernels import at, chances, take
from serving.ranking.selection import Ballot, Floats, Indices


@dataclass(frozen=True)
class Step:
    """The chances (N,) at one rank: by score, and of those on trial, who have the ``quota`` of it."""

    usual_N: Floats
    trial_N: Floats
    quota: float
    on_trial: bool

    @property
    def total_N(self) -> Floats:
        out: Floats = self.quota * self.trial_N + (1.0 - self.quota) * self.usual_N
        return out

    def pick(self, draw: float) -> tuple[int, bool]:
        """The position at a draw of [0, 1), and whether it is the quota's."""
        if draw < self.quota:
            return int(at(self.trial_N, draw / self.quota)), True
        return int(at(self.usual_N, (draw - self.quota) / (1.0 - self.quota))), False


class Walk:
    """One policy's way along a list of up to ``n`` ranks. Items that are fixed to a rank count from the first
    rank on, as they do in a draw."""

    def __init__(self, ballot: Ballot, n: int) -> None:
        size = len(ballot)
        self._ballot, self._scores_N = ballot, ballot.scores_N.astype(np.float64)
        self._trust_N, self._even_N, self._near_N = ballot.trust, np.ones(size), np.zeros(size)
        self._directions, self._numbers = ballot.directions, ballot.chance.numbers
        self._groups, self._most = ballot.groups, ballot.most
        self._left_N = ballot.left
        self._taken, self._count = np.empty(size, np.int64), 0
        self.closed = np.zeros(len(ballot.caps), np.int64)  # by cap: whom it shut out
        for position in ballot.pinned(n):
            if position >= 0:
                self.take(int(position))

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be drawn."""
        return not self._left_N.any()

    def step(self) -> Step:
        """The chances at the next rank; not to be asked where it has ended."""
        usual_N, trial_N = np.empty(len(self._ballot)), np.empty(len(self._ballot))
        on_trial = chances(
            self._scores_N,
            self._near_N,
            self._trust_N,
            self._even_N,
            self._left_N,
            self._numbers,
            usual_N,
            trial_N,
        )
        quota = self._ballot.chance.quota if on_trial else 0.0
        return Step(usual_N, trial_N, quota, bool(on_trial))

    def take(self, position: int) -> None:
        """What stands at the next rank, whoever put it there."""
        take(
            position,
            self._directions,
            self._ballot.chance.diversity,
            self._near_N,
            self._groups,
            self._most,
            self._taken,
            self._count,
            self._left_N,
            self.closed,
        )
        self._count += 1


def seats(pinned: Indices, rank: int, waiting: int, ended: bool) -> int:
    """The rank whose fixed item stands at this one, -1 where it is drawn: its own, or, where nothing is left
    to be drawn, the first that still waits. ``pinned`` is -1 where none does."""
    if not waiting or not (pinned[rank] >= 0 or ended):
        return -1
    return rank if pinned[rank] >= 0 else int(np.flatnonzero(pinned >= 0)[0])


def chances_along(ballot: Ballot, positions_R: Indices, n: int) -> tuple[Floats, bool]:
    """The chance (R, N) of every candidate at each rank of a list, given the items above it; and whether the
    policy would have gone on, of ``n`` ranks, after the list's last item."""
    walk, pinned = Walk(ballot, n), ballot.pinned(n)
    waiting = int((pinned >= 0).sum())
    found_RN = np.zeros((len(positions_R), len(ballot)))
    for rank, position in enumerate(positions_R.tolist()):
        seat = seats(pinned, rank, waiting, walk.ended)
        if seat >= 0:
            found_RN[rank, pinned[seat]] = 1.0
            pinned[seat], waiting = -1, waiting - 1
        elif not walk.ended:
            found_RN[rank] = walk.step().total_N
            walk.take(position)
    more = len(positions_R) < min(n, len(ballot)) and (waiting > 0 or not walk.ended)
    return found_RN, more
