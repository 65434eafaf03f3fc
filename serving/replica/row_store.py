"""The rows that a replica serves from: the fold of published deltas over a serving snapshot, no optimizer.

An id without a row gets the initial value that it has at its shard, so both sides agree on it unasked.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.rounding import digest_of_rows
from parameter_server.table.id_map import IdMap
from parameter_server.table.table import initial_rows, table_seed
from recsys.arrays.growable import grown, written_bytes
from recsys.config.system_config import TableConfig

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
_BLOCK: Final = 8192


class RowStore:
    """Rows of one table by key, with ``room`` for so many at first. One thread reads and writes it."""

    def __init__(self, config: TableConfig, seed: int, room: int = 8) -> None:
        self.config = config
        self._seed = seed
        self._digest_seed = table_seed(seed, config.name)
        self._digest = 0
        self._ids = IdMap(max(room, 8))
        self._values = np.zeros((max(room, 8), config.dim), np.float32)
        self._written = 0  # rows from the first slot on that were ever written

    @classmethod
    def filled(cls, config: TableConfig, seed: int, keys: Keys, values: Rows) -> "RowStore":
        """A store of distinct keys. It is filled in blocks, so that no other thread waits long for it."""
        store = cls(config, seed, room=len(keys))
        for start in range(0, len(keys), _BLOCK):
            part = slice(start, start + _BLOCK)
            store.set(keys[part], values[part])
        return store

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """The memory behind the rows, with their map."""
        return self._ids.nbytes + written_bytes(self._values, self._written)

    @property
    def digest(self) -> int:
        """Of all rows, modulo 2⁶⁴: what ``parameter_server.publish.published`` says of the same rows. It is kept by
        what each change replaces, so a row that isn't what was set shows once it changes again."""
        return self._digest

    def lookup(self, keys: Keys) -> Rows:
        """The rows of keys, (N, D)."""
        out = np.empty((len(keys), self.config.dim), np.float32)
        if self._ids.gather(keys, self._values, out):
            missing = self._ids.find(keys) < 0
            out[missing] = initial_rows(self.config, self._seed, keys[missing])
        return out

    def set(self, keys: Keys, values: Rows) -> None:
        """Overwrites the rows of distinct keys."""
        before = len(self._ids)
        slots = self._ids.insert(keys)
        if len(self._ids) > len(self._values):
            self._values = grown(self._values, len(self._ids))
        self._written = max(self._written, len(self._ids))
        self._count(keys, self._values[slots], slots < before, -1)
        self._count(keys, values, np.ones(len(keys), np.bool_), 1)
        self._values[slots] = values

    def reserve(self, more: int) -> None:
        """Makes room for so many more rows. Another thread may read meanwhile, and none may write."""
        self._ids.reserve(more)
        self._values = grown(self._values, len(self._ids) + more)

    def remove(self, keys: Keys) -> None:
        """Drops rows: their ids have the initial value again."""
        slots = self._ids.find(keys)
        slots = slots[slots >= 0]
        if len(slots):
            there = np.ones(len(slots), np.bool_)
            self._count(self._ids.keys[slots], self._values[slots], there, -1)
            self._ids.remove(slots).apply(self._values)

    def _count(self, keys: Keys, rows: Rows, chosen: NDArray[np.bool_], sign: int) -> None:
        its = digest_of_rows(self._digest_seed, keys, rows, chosen)
        self._digest = (self._digest + sign * its) % 2**64

    def export(self) -> tuple[Keys, Rows]:
        """All keys, ascending, with their rows: what a digest is made of."""
        order = np.argsort(self._ids.keys, kind="stable")
        return self._ids.keys[order], self._values[: len(self._ids)][order]
