"""Withheld rows of one table: last sent values and priorities of rows whose change waits for the byte
budget."""

# R withheld rows, N keys of a call, D dimension

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.id_map import IdMap
from parameter_server.table.routing import Keys, Rows, as_keys
from parameter_server.table.table import Arrays
from recsys.arrays.growable import grown, written_bytes

WITHHELD_COLUMNS: Final = ("keys", "last", "had", "traffic", "change")


class LastSent(NamedTuple):
    """Last sent rows (N, D), whether ever sent (N,), and the number of examples since (N,)."""

    last: Rows
    had: NDArray[np.bool_]
    traffic: NDArray[np.int64]


class WithheldRows:
    """Withheld rows by key. Slots depend on history; nothing published does."""

    def __init__(self, dim: int, halves: bool = False) -> None:
        """``halves``: sent values are exact in float16 and stored as such."""
        self._ids = IdMap()
        self._last: NDArray[Any] = np.zeros((8, dim), np.float16 if halves else np.float32)
        self._had = np.zeros(8, np.bool_)
        self._traffic = np.zeros(8, np.int64)
        self._change = np.zeros(8, np.float64)
        self._written = 0  # length of the prefix ever written

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def keys(self) -> Keys:
        """Keys (R,): a view, valid until the next change."""
        return self._ids.keys

    @property
    def weights(self) -> NDArray[np.float64]:
        """Traffic × change (R,), in the order of ``keys``."""
        out: NDArray[np.float64] = self._traffic[: len(self)] * self._change[: len(self)]
        return out

    @property
    def nbytes(self) -> int:
        return self._ids.nbytes + sum(written_bytes(c, self._written) for c in self._columns)

    @property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return self._last, self._had, self._traffic, self._change

    def put(
        self,
        keys: Keys,
        last: Rows,
        had: NDArray[np.bool_],
        traffic: NDArray[np.int64],
        change: NDArray[np.float64],
    ) -> None:
        """Adds rows of distinct keys that aren't withheld yet."""
        slots = self._ids.insert(keys)
        rows = len(self._ids)
        self._written = max(self._written, rows)
        self._last, self._had = grown(self._last, rows), grown(self._had, rows)
        self._traffic, self._change = grown(self._traffic, rows), grown(self._change, rows)
        self._last[slots], self._had[slots] = last, had
        self._traffic[slots], self._change[slots] = traffic, change

    def pop(self, keys: Keys) -> tuple[Keys, LastSent]:
        """Removes rows by distinct keys; returns the positions of withheld ones among the keys, and their
        state."""
        slots = self._ids.find(as_keys(keys))
        at = np.flatnonzero(slots >= 0)
        slots = slots[at]
        last: Rows = self._last[slots].astype(np.float32)
        old = LastSent(last, self._had[slots], self._traffic[slots])
        if len(slots):
            moves = self._ids.remove(slots)
            for column in self._columns:
                moves.apply(column)
        return at, old

    def export(self) -> Arrays:
        """Copies of all columns, ascending by key."""
        order = np.argsort(self.keys)
        pairs = zip(WITHHELD_COLUMNS, (self.keys, *self._columns), strict=True)
        return {name: column[: len(self)][order] for name, column in pairs}
