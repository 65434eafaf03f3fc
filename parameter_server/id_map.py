"""Ids to slots without collisions: every key has a slot of its own, and slots are always 0 … count - 1.

Keeping slots dense makes exports slices and expiry a scan; so a removal moves the last rows into the holes,
and whoever keeps columns beside the map moves them the same way (``Moves``).
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server import kernels
from parameter_server.routing import Keys, as_keys, new_index


class Moves(NamedTuple):
    """What a removal does to columns: column[to] = column[origin], then [after:before] is free."""

    to: Keys
    origin: Keys
    after: int
    before: int

    def apply(self, column: NDArray[Any]) -> None:
        """Moves one column's rows and zeroes what is free."""
        column[self.to] = column[self.origin]
        column[self.after : self.before] = 0


class IdMap:
    """Open addressing with linear probing and backward-shift deletion, over int64 keys (any value)."""

    def __init__(self, capacity: int = 8) -> None:
        self._index = new_index(capacity)
        self._keys = np.zeros(capacity, np.int64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> Keys:
        """The keys by slot, (count,): a view, valid until the next change."""
        return self._keys[: self._count]

    @property
    def nbytes(self) -> int:
        return self._index.nbytes + self._keys.nbytes

    def find(self, keys: Keys) -> Keys:
        """The slot of each key, -1 where it has none."""
        slots = np.empty(len(keys), np.int64)
        kernels.find(self._index, as_keys(keys), slots)
        return slots

    def insert(self, keys: Keys) -> Keys:
        """The slot of each key; new keys get the next slots, in order."""
        keys = as_keys(keys)
        self._make_room(self._count + len(keys))
        slots = np.empty(len(keys), np.int64)
        self._count = int(kernels.insert(self._index, self._keys, self._count, keys, slots))
        return slots

    def remove(self, slots: Keys) -> Moves:
        """Takes away the keys of distinct slots, and says how columns must follow."""
        before, count = self._count, self._count - len(slots)
        kernels.erase(self._index, self._keys[slots])
        stays = np.ones(before - count, bool)
        stays[slots[slots >= count] - count] = False
        moves = Moves(slots[slots < count], count + np.flatnonzero(stays), count, before)
        kernels.move(self._index, self._keys[moves.origin], moves.to)
        moves.apply(self._keys)
        self._count = count
        return moves

    def _make_room(self, rows: int) -> None:
        if rows > len(self._keys):
            self._keys = grown(self._keys, rows)
        if rows > len(self._index) * 0.6:
            self._index = new_index(2 * rows)
            kernels.insert(
                self._index, self._keys, 0, self.keys.copy(), np.empty(self._count, np.int64)
            )


def grown(column: NDArray[Any], rows: int) -> NDArray[Any]:
    """A copy with room for at least ``rows`` rows: doubled as often as needed, zeros behind."""
    capacity = max(len(column), 8)
    while capacity < rows:
        capacity *= 2
    out = np.zeros((capacity, *column.shape[1:]), column.dtype)
    out[: len(column)] = column
    return out
