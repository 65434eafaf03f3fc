"""Rows that a replica serves from: published deltas folded over a serving snapshot, without optimizer state.

An id without a row has the same initial value as at its parameter shard, so both sides agree unasked.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.rounding import digest_of_rows
from parameter_server.table.table import initial_rows, table_seed
from recsys.arrays.growable import grown, written_bytes
from recsys.arrays.id_map import IdMap
from recsys.config.system_config import TableConfig

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
_BLOCK: Final = 8192


class RowStore:
    """Rows of one table by key, with initial ``room``. One thread reads and writes it."""

    def __init__(self, config: TableConfig, seed: int, room: int = 8) -> None:
        self.config = config
        self._seed = seed
        self._digest_seed = table_seed(seed, config.name)
        self._digest = 0
        self._ids = IdMap(max(room, 8))
        self._values = np.zeros((max(room, 8), config.dim), np.float32)
        self._written = 0  # slots, from the first on, that were ever written

    @classmethod
    def filled(cls, config: TableConfig, seed: int, keys: Keys, values: Rows) -> "RowStore":
        """A store of distinct keys, filled in blocks, so that no other thread waits long."""
        store = cls(config, seed, room=len(keys))
        for start in range(0, len(keys), _BLOCK):
            block = slice(start, start + _BLOCK)
            store.set(keys[block], values[block])
        return store

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        return self._ids.nbytes + written_bytes(self._values, self._written)

    @property
    def digest(self) -> int:
        """Digest of all rows, modulo 2⁶⁴, as ``parameter_server.publish.published`` computes it. Each change
        updates it by the rows that it replaces, so a corrupt row shows once it changes again."""
        return self._digest

    def lookup(self, keys: Keys) -> Rows:
        """Rows of keys, (N, D)."""
        out = np.empty((len(keys), self.config.dim), np.float32)
        if self._ids.gather(keys, self._values, out):
            missing = self._ids.find(keys) < 0
            out[missing] = initial_rows(self.config, self._seed, keys[missing])
        return out

    def set(self, keys: Keys, values: Rows) -> None:
        """Overwrites the rows of distinct keys."""
        before = len(self._ids)
        slots = self._ids.insert(keys)
        self._values = grown(self._values, len(self._ids))
        self._written = max(self._written, len(self._ids))
        self._count(keys, self._values[slots], -1, slots < before)
        self._count(keys, values, 1)
        self._values[slots] = values

    def reserve(self, more: int) -> None:
        """Makes room for more rows. Another thread may read meanwhile, and none may write."""
        self._ids.reserve(more)
        self._values = grown(self._values, len(self._ids) + more)

    def remove(self, keys: Keys) -> None:
        """Drops rows: their ids return to the initial value."""
        slots = self._ids.find(keys)
        slots = slots[slots >= 0]
        if len(slots):
            self._count(self._ids.keys[slots], self._values[slots], -1)
            self._ids.remove(slots).apply(self._values)

    def _count(
        self, keys: Keys, rows: Rows, sign: int, chosen: NDArray[np.bool_] | None = None
    ) -> None:
        chosen = np.ones(len(keys), np.bool_) if chosen is None else chosen
        change = digest_of_rows(self._digest_seed, keys, rows, chosen)
        self._digest = (self._digest + sign * change) % 2**64

    def export(self) -> tuple[Keys, Rows]:
        """All keys, ascending, with their rows: the input of a digest."""
        order = np.argsort(self._ids.keys, kind="stable")
        return self._ids.keys[order], self._values[: len(self._ids)][order]
