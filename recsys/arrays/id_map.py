"""Collision-free map of ids to slots 0 … count - 1, with columns of one row a slot.

Dense slots make exports slices and expiry a scan. A removal moves the last rows into the holes; owners of
other columns move them the same way (``Moves``). Columns grow by doubling, since unwritten pages take no
memory. The index is written all over, so it grows by a quarter, as do small columns.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys.arrays import key_index
from recsys.arrays.growable import grown, written_bytes
from recsys.arrays.key_index import LOAD, cells_for, empty_index, widened

_SMALL = 1024  # rows
Arrays = dict[str, NDArray[Any]]
Keys = NDArray[np.int64]


class Moves(NamedTuple):
    """Effect of a removal on columns: column[to] = column[origin], then [after:before] is free."""

    to: Keys
    origin: Keys
    after: int
    before: int

    def apply(self, column: NDArray[Any]) -> None:
        """Moves one column's rows and zeroes the freed ones."""
        column[self.to] = column[self.origin]
        column[self.after : self.before] = 0


class IdMap:
    """Open addressing with linear probing and backward-shift deletion, over int64 keys (any value)."""

    # Sessions have many small ones.
    __slots__ = ("_count", "_keys", "_limit", "_written", "columns", "index")

    def __init__(self, capacity: int = 8, limit: int = 0, columns: Arrays | None = None) -> None:
        """``limit``: rows at which memory stops growing ahead of need (0: none). It may be exceeded.
        ``columns``: zeros by name, of ``capacity`` rows."""
        # Replaced as they grow: read them again after each change.
        self.columns = columns or {}
        self._limit = limit
        self.index = empty_index(cells_for(capacity))
        self._keys = np.zeros(capacity, np.int64)
        self._count = 0
        self._written = 0  # keys from the first slot on that were ever written

    @classmethod
    def of(cls, index: NDArray[np.int64], keys: Keys, count: int) -> "IdMap":
        """Rebuilds a map without columns from its saved index and keys (``key_room``); it changes both."""
        ids = cls()
        ids.index, ids._keys, ids._count, ids._written = index, keys, count, count
        return ids

    def __len__(self) -> int:
        return self._count

    @property
    def keys(self) -> Keys:
        """The keys by slot, (count,): a view, valid until the next change."""
        return self._keys[: self._count]

    @property
    def key_room(self) -> Keys:
        """``keys`` and spare rows."""
        return self._keys[: self._count * 9 // 8]

    @property
    def nbytes(self) -> int:
        columns = (self._keys, *self.columns.values())
        return self.index.nbytes + sum(written_bytes(c, self._written) for c in columns)

    def find(self, keys: Keys) -> Keys:
        """The slot of each key, -1 where it has none."""
        slots = np.empty(len(keys), np.int64)
        key_index.find(self.index, _contiguous(keys), slots)
        return slots

    def gather(self, keys: Keys, column: NDArray[np.float32], out: NDArray[np.float32]) -> int:
        """Copies rows from a column (R, D) to ``out`` (N, D); returns the number of missing keys, whose rows
        of ``out`` stay unchanged."""
        return int(key_index.gather_rows(self.index, _contiguous(keys), column, out))

    def insert(self, keys: Keys) -> Keys:
        """The slot of each key; new keys get the next slots, in order."""
        keys = _contiguous(keys)
        self.reserve(len(keys))
        slots = np.empty(len(keys), np.int64)
        self._count = int(key_index.insert(self.index, self._keys, self._count, keys, slots))
        self._written = max(self._written, self._count)
        return slots

    def insert_by(self, kernel: Callable[..., int], keys: Keys, *arguments: Any) -> None:
        """Inserts keys, and does more with their slots, in one call of a kernel. It gets the index, the keys
        by slot, their number, the keys to insert and all columns, and returns the new number."""
        self.reserve(len(keys))
        columns = self.columns.values()
        self._count = int(kernel(self.index, self._keys, self._count, keys, *columns, *arguments))
        self._written = max(self._written, self._count)

    def put(self, keys: Keys, rows: Mapping[str, NDArray[Any]]) -> None:
        """Inserts distinct keys, or overwrites their rows in all columns."""
        slots = self.insert(keys)
        for name, column in self.columns.items():
            column[slots] = rows[name]

    def export(self, slots: Keys | None = None) -> Arrays:
        """Copies of the keys ("keys") and all columns, of all slots or of some."""
        columns = {"keys": self._keys} | self.columns
        rows = {name: column[: self._count] for name, column in columns.items()}
        return {name: c.copy() if slots is None else c[slots] for name, c in rows.items()}

    def remove(self, slots: Keys) -> Moves:
        """Removes the keys at distinct slots; returns the moves for columns of others."""
        before, count = self._count, self._count - len(slots)
        key_index.erase(self.index, self._keys[slots])
        stays = np.ones(before - count, bool)
        stays[slots[slots >= count] - count] = False
        moves = Moves(slots[slots < count], count + np.flatnonzero(stays), count, before)
        key_index.move(self.index, self._keys[moves.origin], moves.to)
        for column in (self._keys, *self.columns.values()):
            moves.apply(column)
        self._count = count
        return moves

    def reserve(self, more: int) -> None:
        """Makes room for ``more`` keys. Columns are replaced, never moved, so concurrent readers stay
        valid."""
        rows = self._count + more
        if rows > len(self._keys):
            room = rows, self._limit, 1.25 if len(self._keys) < _SMALL else 2.0
            self._keys = grown(self._keys, *room)
            self.columns = {name: grown(c, *room) for name, c in self.columns.items()}
        if rows > len(self.index) * LOAD:
            cells = max(math.ceil(rows / LOAD), len(self.index) * 5 // 4, 8)
            if rows <= self._limit:
                cells = min(cells, math.ceil(self._limit / LOAD))
            self.index = widened(self.index, cells)

    def shrink(self) -> None:
        """Frees memory beyond ``limit``, after a snapshot with a higher limit was loaded."""
        if self._limit and self._count <= self._limit < len(self._keys):
            self._keys = self._keys[: self._limit].copy()
            self.columns = {name: c[: self._limit].copy() for name, c in self.columns.items()}
            self._written = self._limit
            self.index = widened(self.index, math.ceil(self._limit / LOAD))


def _contiguous(keys: Keys) -> Keys:
    return np.ascontiguousarray(keys, np.int64)
