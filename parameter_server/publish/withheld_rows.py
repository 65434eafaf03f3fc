"""Withheld rows of one table: last sent values and priorities of rows that wait for the byte budget."""

# R withheld rows, N keys of a call, D dimension

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import Keys, Rows, as_keys
from recsys.arrays.id_map import Arrays, IdMap

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
        columns: Arrays = {
            "last": np.zeros((8, dim), np.float16 if halves else np.float32),
            "had": np.zeros(8, np.bool_),
            "traffic": np.zeros(8, np.int64),
            "change": np.zeros(8, np.float64),
        }
        self._ids = IdMap(columns=columns)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def keys(self) -> Keys:
        """Keys (R,): a view, valid until the next change."""
        return self._ids.keys

    @property
    def weights(self) -> NDArray[np.float64]:
        """Traffic × change (R,), in the order of ``keys``."""
        columns = self._ids.columns
        out: NDArray[np.float64] = columns["traffic"][: len(self)] * columns["change"][: len(self)]
        return out

    def put(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Adds rows (``WITHHELD_COLUMNS``) of distinct keys that aren't withheld yet."""
        self._ids.put(rows["keys"], rows)

    def pop(self, keys: Keys) -> tuple[Keys, LastSent]:
        """Removes rows by distinct keys; returns the positions of withheld ones among the keys, and their
        state."""
        slots = self._ids.find(as_keys(keys))
        at = np.flatnonzero(slots >= 0)
        slots, columns = slots[at], self._ids.columns
        last: Rows = columns["last"][slots].astype(np.float32)
        old = LastSent(last, columns["had"][slots], columns["traffic"][slots])
        self._ids.remove(slots)
        return at, old

    def export(self) -> Arrays:
        """Copies of all columns, ascending by key."""
        order = np.argsort(self.keys)
        return {name: column[order] for name, column in self._ids.export().items()}
