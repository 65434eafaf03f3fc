"""Walks along a list rank by rank with the probabilities of all candidates at each rank.

The walk takes the compiled steps of ``serving.selection.sampling.sample_slate`` one by one, equal to the last
bit: along a list that two policies draw in turns (team_draft.py), or that another policy drew.
"""

# N candidates, R ranks

from dataclasses import dataclass

import numpy as np

from serving.selection.draw_kernels import at_quantile, may_follow, place, rank_probabilities
from serving.selection.sampling import Floats, Indices, SamplingInput


@dataclass(frozen=True)
class RankStep:
    """Probabilities (N,) at one rank: by score, and of trial items, which have the ``quota`` of the rank."""

    usual_N: Floats
    trial_N: Floats
    quota: float
    on_trial: bool

    @property
    def total_N(self) -> Floats:
        out: Floats = self.quota * self.trial_N + (1.0 - self.quota) * self.usual_N
        return out

    def pick(self, draw: float) -> tuple[int, bool]:
        """The position at a draw in [0, 1), and whether the quota picked it."""
        if draw < self.quota:
            return int(at_quantile(self.trial_N, draw / self.quota)), True
        return int(at_quantile(self.usual_N, (draw - self.quota) / (1.0 - self.quota))), False


class SlateWalk:
    """One policy's walk along a list of up to ``n`` ranks. Pinned items count from the first rank on, as in a
    draw. ``closed``: candidates excluded by each cap."""

    def __init__(self, given: SamplingInput, n: int) -> None:
        size = len(given)
        self._given, self._scores_N = given, given.scores_N.astype(np.float64)
        self._trust_N, self._even_N = given.trust, np.ones(size)
        self._params, self._directions_VN = given.params.numbers, given.directions_VN
        self._groups, self._limits, self._runs = given.groups, given.limits, given.runs
        self._penalty_N, self._left_N = np.zeros(size), given.remaining()
        self._placed, self._count = np.empty(size, np.int64), 0
        self.closed = np.zeros(len(given.caps), np.int64)
        for position in given.pinned_R(n).tolist():
            if position >= 0:
                self.place(position)

    @property
    def ended(self) -> bool:
        """Whether nothing is left to draw."""
        return not self._left_N.any()

    def step(self, above_R: Indices) -> RankStep:
        """Probabilities at the rank after the items above. Only while the walk has not ended."""
        usual_N, trial_N = np.empty(len(self._given)), np.empty(len(self._given))
        following_N = np.empty(len(self._given), np.bool_)
        may_follow(self._left_N, self._groups, self._runs, above_R, len(above_R), following_N)
        on_trial = rank_probabilities(
            self._scores_N, self._penalty_N, self._trust_N, self._even_N, following_N,
            self._params, usual_N, trial_N,
        )  # fmt: skip
        quota = self._given.params.quota if on_trial else 0.0
        return RankStep(usual_N, trial_N, quota, bool(on_trial))

    def place(self, position: int) -> None:
        """Takes note of the item at the next rank, whoever picked it."""
        place(
            position, self._directions_VN, self._given.params.diversity, self._penalty_N,
            self._groups, self._limits, self._placed, self._count, self._left_N, self.closed,
        )  # fmt: skip
        self._count += 1


class PinnedRanks:
    """Pinned items that have not been placed yet."""

    def __init__(self, given: SamplingInput, n: int) -> None:
        self._positions_R = given.pinned_R(n)

    def __len__(self) -> int:
        return int((self._positions_R >= 0).sum())

    def pop(self, rank: int, ended: bool) -> int:
        """Takes the item of this rank or, where nothing is left to draw, the first that waits; -1: none."""
        if not len(self):
            return -1
        if ended and self._positions_R[rank] < 0:
            rank = int(np.flatnonzero(self._positions_R >= 0)[0])
        position = int(self._positions_R[rank])
        self._positions_R[rank] = -1
        return position
