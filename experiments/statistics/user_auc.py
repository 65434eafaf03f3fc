"""By how much a candidate orders one user's own items better than live: AUC within users, as examples come.

AUC over a stretch of time rewards a model that knows which users engage with anything. A list is of one user,
so what it gains by is the order within. Each example is held against the user's latest ones with the other
label; what is counted is how many of these pairs each model has the right way round (ties as a half). The
mean over examples is a GAUC in which each example has the same weight (Zhou et al. 2018, "Deep Interest
Network", section 5.2, weights by impressions).
"""

# N examples, M of them with something to be held against, K kept of a user and label

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_KEPT: Final = 8  # of a user and label; an example further back is of another mood
_SLOTS: Final = 16_384  # users that are remembered; one who shares a slot takes it over
_FIRST: Final = 64  # rows; more are made as users come
_NOBODY: Final = np.iinfo(np.int64).min


class UserAuc:
    """Pairs of one user's examples, across batches. Memory is bounded: who shares a slot takes it over. A
    slot has a row once somebody takes it, so few users need little."""

    def __init__(self, kept: int = _KEPT, slots: int = _SLOTS) -> None:
        self._kept, self._slots = kept, slots
        self._row = np.full(slots, -1, np.int32)  # of each slot; −1: nobody took it yet
        self._rows = 0
        self._owner = np.full(_FIRST, _NOBODY)
        self._scores = np.zeros(
            (_FIRST, 2, kept, 2), np.float32
        )  # by label; live's, the candidate's
        self._seen = np.zeros((_FIRST, 2), np.int64)  # put there so far, by label

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(its.nbytes for its in (self._row, self._owner, self._scores, self._seen))

    def add(
        self, users_N: NDArray[np.int64], live_N: Floats, candidate_N: Floats, labels_N: Floats
    ) -> tuple[NDArray[np.int64], Floats]:
        """Examples in the order in which they came: users (M,), and the candidate's gain for each (M,), from
        −1 to 1. Examples of one batch aren't held against each other."""
        users, slots = users_N.astype(np.int64), users_N.astype(np.uint64) % np.uint64(self._slots)
        at, label = self._rows_of(slots.astype(np.int64)), (labels_N > 0.5).astype(np.int64)
        both = np.stack([live_N, candidate_N], 1).astype(np.float32)
        gains = self._gains(users, at, label, both)
        self._keep(users, at, label, both)
        found = np.isfinite(gains)
        return users[found], gains[found]

    def _rows_of(self, slots_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where slots have their rows; those that none took before get one."""
        fresh = np.unique(slots_N[self._row[slots_N] < 0])
        self._row[fresh] = np.arange(self._rows, self._rows + len(fresh))
        self._rows += len(fresh)
        if self._rows > len(self._owner):
            size = min(self._slots, 1 << (self._rows - 1).bit_length())
            more = size - len(self._owner)
            self._owner = np.append(self._owner, np.full(more, _NOBODY))
            self._scores, self._seen = (
                np.concatenate([its, np.zeros((more, *its.shape[1:]), its.dtype)])
                for its in (self._scores, self._seen)
            )
        out: NDArray[np.int64] = self._row[slots_N].astype(np.int64)
        return out

    def _gains(
        self,
        users_N: NDArray[np.int64],
        at_N: NDArray[np.int64],
        label_N: NDArray[np.int64],
        both_N2: NDArray[np.float32],
    ) -> Floats:
        """NaN where nothing is there to be held against."""
        others = self._scores[at_N, 1 - label_N]  # (N, K, 2)
        known = np.minimum(self._seen[at_N, 1 - label_N], self._kept)
        known = np.where(self._owner[at_N] == users_N, known, 0)
        there = np.arange(self._kept) < known[:, None]  # (N, K)
        sign = np.where(label_N > 0, 1.0, -1.0)[:, None, None]
        right = (np.sign(both_N2[:, None, :] - others) * sign + 1) / 2
        gained = np.where(there, right[:, :, 1] - right[:, :, 0], 0.0).sum(1)
        out: Floats = np.where(known > 0, gained / np.maximum(known, 1), np.nan)
        return out

    def _keep(
        self,
        users_N: NDArray[np.int64],
        at_N: NDArray[np.int64],
        label_N: NDArray[np.int64],
        both_N2: NDArray[np.float32],
    ) -> None:
        last = np.zeros(len(users_N), np.bool_)  # of those in one slot the last owner takes it
        last[len(at_N) - 1 - np.unique(at_N[::-1], return_index=True)[1]] = True
        fresh = at_N[last][self._owner[at_N[last]] != users_N[last]]
        self._seen[fresh], self._owner[at_N[last]] = 0, users_N[last]
        mine = self._owner[at_N] == users_N
        at, label, both = at_N[mine], label_N[mine], both_N2[mine]
        cell = at * 2 + label
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        counts = np.diff(np.append(starts, len(order)))
        nth = np.empty(len(order), np.int64)
        nth[order] = np.arange(len(order)) - np.repeat(starts, counts)
        place = (self._seen[at, label] + nth) % self._kept
        self._scores[at, label, place] = (
            both  # of two in one place the later stays: numpy assigns in order
        )
        np.add.at(self._seen, (at, label), 1)
