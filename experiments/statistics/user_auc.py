"""Streaming AUC within users: how much better a candidate orders each user's own items than live.

Each example is paired with the user's latest ones of the other label; each model's
share of correctly ordered pairs counts (ties as a half). The mean over examples is a GAUC with equal weights
(Zhou et al. 2018, "Deep Interest Network", section 5.2, weights by impressions).
"""

# N examples, M of them with pairs, K stored examples of a user and label

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = NDArray[np.float32]
_STORED: Final = 8  # of a user and label; older examples are of another mood
_SLOTS: Final = 16_384  # for users by hash; the newest user of a slot replaces the one before
_FIRST: Final = 64  # initial rows
_NOBODY: Final = np.iinfo(np.int64).min


class UserAuc:
    """Pairs of each user's examples, across batches. Memory is bounded: users of one slot replace each other.
    A slot gets a row at its first use, so few users need little."""

    def __init__(self, stored: int = _STORED, slots: int = _SLOTS) -> None:
        self._stored, self._slots = stored, slots
        self._row = np.full(slots, -1, np.int32)  # of each slot; −1: unused
        self._rows = 0
        self._owner = np.full(_FIRST, _NOBODY)
        # By label; scores of live and of the candidate.
        self._scores = np.zeros((_FIRST, 2, stored, 2), np.float32)
        self._seen = np.zeros((_FIRST, 2), np.int64)  # examples so far, by label

    def add(
        self, users_N: Ints, live_N: Floats, candidate_N: Floats, labels_N: Floats
    ) -> tuple[Ints, Floats]:
        """Adds examples in the order of arrival; returns users (M,) and the candidate's gains (M,), from −1
        to 1. Examples of one batch aren't paired with each other."""
        users, slots = users_N.astype(np.int64), users_N.astype(np.uint64) % np.uint64(self._slots)
        at, label = self._rows_of(slots.astype(np.int64)), (labels_N > 0.5).astype(np.int64)
        scores = np.stack([live_N, candidate_N], 1).astype(np.float32)
        gains = self._gains(users, at, label, scores)
        self._store(users, at, label, scores)
        paired = np.isfinite(gains)
        return users[paired], gains[paired]

    def _rows_of(self, slots_N: Ints) -> Ints:
        """Rows of slots; new slots get one."""
        fresh = np.unique(slots_N[self._row[slots_N] < 0])
        self._row[fresh] = np.arange(self._rows, self._rows + len(fresh))
        self._rows += len(fresh)
        if self._rows > len(self._owner):
            more = min(self._slots, 1 << (self._rows - 1).bit_length()) - len(self._owner)
            self._owner = np.append(self._owner, np.full(more, _NOBODY))
            self._scores, self._seen = (
                np.concatenate([array, np.zeros((more, *array.shape[1:]), array.dtype)])
                for array in (self._scores, self._seen)
            )
        out: Ints = self._row[slots_N].astype(np.int64)
        return out

    def _gains(self, users_N: Ints, at_N: Ints, label_N: Ints, scores_N2: Scores) -> Floats:
        """Gains (N,), NaN without pairs."""
        others_NK2 = self._scores[at_N, 1 - label_N]
        count_N = np.minimum(self._seen[at_N, 1 - label_N], self._stored)
        count_N = np.where(self._owner[at_N] == users_N, count_N, 0)
        present_NK = np.arange(self._stored) < count_N[:, None]
        sign = np.where(label_N > 0, 1.0, -1.0)[:, None, None]
        right_NK2 = (np.sign(scores_N2[:, None, :] - others_NK2) * sign + 1) / 2
        gain_N = np.where(present_NK, right_NK2[:, :, 1] - right_NK2[:, :, 0], 0.0).sum(1)
        out: Floats = np.where(count_N > 0, gain_N / np.maximum(count_N, 1), np.nan)
        return out

    def _store(self, users_N: Ints, at_N: Ints, label_N: Ints, scores_N2: Scores) -> None:
        last = np.zeros(len(users_N), np.bool_)  # the last user of a slot takes it
        last[len(at_N) - 1 - np.unique(at_N[::-1], return_index=True)[1]] = True
        fresh = at_N[last][self._owner[at_N[last]] != users_N[last]]
        self._seen[fresh], self._owner[at_N[last]] = 0, users_N[last]
        owned = self._owner[at_N] == users_N
        at, label = at_N[owned], label_N[owned]
        cell = at * 2 + label
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        counts = np.diff(np.append(starts, len(order)))
        nth = np.empty(len(order), np.int64)
        nth[order] = np.arange(len(order)) - np.repeat(starts, counts)
        place = (self._seen[at, label] + nth) % self._stored
        # Of two in one place the later stays: numpy assigns in order.
        self._scores[at, label, place] = scores_N2[owned]
        np.add.at(self._seen, (at, label), 1)
