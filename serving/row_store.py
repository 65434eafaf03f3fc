"""The rows that a replica serves from: the fold of published deltas over a serving snapshot, no optimizer.

An id without a row gets the initial value that it has at its shard, so both sides agree on it unasked.
"""

import numpy as np
from numpy.typing import NDArray

from parameter_server.id_map import IdMap, grown
from parameter_server.rows import initial_rows
from recsys.config import TableConfig

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]


class RowStore:
    """Rows of one table by key. One thread reads and writes it, between requests."""

    def __init__(self, config: TableConfig, seed: int) -> None:
        self.config = config
        self._seed = seed
        self._ids = IdMap()
        self._values = np.zeros((8, config.dim), np.float32)

    def __len__(self) -> int:
        return len(self._ids)

    def lookup(self, keys: Keys) -> Rows:
        """The rows of keys, (N, D)."""
        slots = self._ids.find(keys)
        out = self._values[slots]
        missing = slots < 0
        if missing.any():
            out[missing] = initial_rows(self.config, self._seed, keys[missing])
        return out

    def set(self, keys: Keys, values: Rows) -> None:
        """Overwrites the rows of distinct keys."""
        slots = self._ids.insert(keys)
        if len(self._ids) > len(self._values):
            self._values = grown(self._values, len(self._ids))
        self._values[slots] = values

    def remove(self, keys: Keys) -> None:
        """Drops rows: their ids have the initial value again."""
        slots = self._ids.find(keys)
        slots = slots[slots >= 0]
        if len(slots):
            self._ids.remove(slots).apply(self._values)

    def export(self) -> tuple[Keys, Rows]:
        """All keys, ascending, with their rows: what a digest is made of."""
        order = np.argsort(self._ids.keys, kind="stable")
        return self._ids.keys[order], self._values[: len(self._ids)][order]
