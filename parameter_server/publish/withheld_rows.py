"""Rows of one table whose change is held back: what replicas hold of them, and how much that matters."""

# R rows held back, N keys asked for, D dimension

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.id_map import IdMap
from parameter_server.table.routing import Keys, Rows, as_keys
from parameter_server.table.table import Arrays
from recsys.arrays.growable import grown, written_bytes

WITHHELD_COLUMNS: Final = ("keys", "last", "had", "traffic", "change")


class Old(NamedTuple):
    """What was kept of rows: as last sent (N, D), if ever (N,), and the examples since (N,)."""

    last: Rows
    had: NDArray[np.bool_]
    traffic: NDArray[np.int64]


class WithheldRows:
    """WithheldRows-back rows by key. Where each stands depends on history; nothing that is published does."""

    def __init__(self, dim: int, halves: bool = False) -> None:
        """``halves``: what was sent is exact in float16, and kept as that."""
        self._ids = IdMap()
        self._last: NDArray[Any] = np.zeros((8, dim), np.float16 if halves else np.float32)
        self._had = np.zeros(8, np.bool_)
        self._traffic = np.zeros(8, np.int64)
        self._change = np.zeros(8, np.float64)
        self._written = 0  # rows from the first on that were ever written to

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def keys(self) -> Keys:
        """The keys (R,): a view, valid until the next change."""
        return self._ids.keys

    @property
    def weights(self) -> NDArray[np.float64]:
        """Traffic × change (R,), in the order of ``keys``."""
        out: NDArray[np.float64] = self._traffic[: len(self)] * self._change[: len(self)]
        return out

    @property
    def nbytes(self) -> int:
        columns = (self._last, self._had, self._traffic, self._change)
        return self._ids.nbytes + sum(written_bytes(column, self._written) for column in columns)

    def put(
        self,
        keys: Keys,
        last: Rows,
        had: NDArray[np.bool_],
        traffic: NDArray[np.int64],
        change: NDArray[np.float64],
    ) -> None:
        """Holds back rows of distinct keys that aren't."""
        slots = self._ids.insert(keys)
        rows = len(self._ids)
        self._written = max(self._written, rows)
        self._last, self._had = grown(self._last, rows), grown(self._had, rows)
        self._traffic, self._change = grown(self._traffic, rows), grown(self._change, rows)
        self._last[slots], self._had[slots] = last, had
        self._traffic[slots], self._change[slots] = traffic, change

    def pop(self, keys: Keys) -> tuple[Keys, Old]:
        """Lets go of rows by distinct keys: which of these were held back, and what was kept of them."""
        slots = self._ids.find(as_keys(keys))
        at = np.flatnonzero(slots >= 0)
        slots = slots[at]
        last: Rows = self._last[slots].astype(np.float32)
        old = Old(last, self._had[slots], self._traffic[slots])
        if len(slots):
            moves = self._ids.remove(slots)
            for column in (self._last, self._had, self._traffic, self._change):
                moves.apply(column)
        return at, old

    def export(self) -> Arrays:
        """Copies of everything by key, ascending."""
        order = np.argsort(self.keys)
        columns = (self.keys, self._last, self._had, self._traffic, self._change)
        pairs = zip(WITHHELD_COLUMNS, columns, strict=True)
        return {name: column[: len(self)][order] for name, column in pairs}
