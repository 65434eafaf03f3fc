"""Rows that a replica serves from: published deltas folded over a serving snapshot, without optimizer state.

Rows of a snapshot stay in its mapped files, which all processes of a machine share: the store has those that
changed since then. Once they are many, a newer snapshot replaces the older one (``rebased``), and what it
has leaves the store. An id without a row has the same initial value as at its parameter shard, so both sides
agree unasked.
"""

from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.rounding import digest_of_rows
from parameter_server.storage.mapped_rows import MappedRows
from parameter_server.table.table import initial_rows, table_seed
from recsys.arrays.growable import grown, written_bytes
from recsys.arrays.id_map import IdMap
from recsys.arrays.key_index import EMPTY
from recsys.config.system_config import TableConfig

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]
Mask = NDArray[np.bool_]
_BLOCK: Final = 8192


class RowStore:
    """Rows of one table by key, with initial ``room``. One thread reads and writes it."""

    def __init__(self, config: TableConfig, seed: int, room: int = 8, base: MappedRows | None = None) -> None:
        """``base``: rows that are as in a snapshot unless they were set or removed since. See ``over``."""
        self.config = config
        self._seed = seed
        self._digest_seed = table_seed(seed, config.name)
        self._digest = self._size = 0
        self._ids = IdMap(max(room, 8))
        self._values = np.zeros((max(room, 8), config.dim), np.float32)
        self._written = 0  # slots, from the first on, that were ever written
        self._base = base
        # Rows over the base: the step that changed each last, and whether it removed it.
        columns = {"step": np.zeros(8, np.int64), "gone": np.zeros(8, np.bool_)}
        self._changes = IdMap(columns=columns)

    @classmethod
    def filled(cls, config: TableConfig, seed: int, keys: Keys, values: Rows) -> Self:
        """A store of distinct keys, filled in blocks, so that no other thread waits long."""
        store = cls(config, seed, room=len(keys))
        for start in range(0, len(keys), _BLOCK):
            block = slice(start, start + _BLOCK)
            store.set(keys[block], values[block])
        return store

    @classmethod
    def over(cls, config: TableConfig, seed: int, base: MappedRows, digested: bool = True) -> Self:
        """A store of a snapshot's rows. ``digested``: each is read once for digest and number of rows, which
        are undefined otherwise."""
        if base.dim not in (0, config.dim):
            raise ValueError(
                f"rows of {config.name} have dimension {base.dim} in the snapshot of step {base.step}, "
                f"expected {config.dim}: it is of another model"
            )
        store = cls(config, seed, base=base)
        for keys, rows in base.blocks() if digested else ():
            store._count(keys, rows, 1)
        return store

    def rebased(self, base: MappedRows) -> Self:
        """The same rows over a newer snapshot, without those in memory that it has. Neither store may change
        meanwhile; this one may be read."""
        store = type(self)(self.config, self._seed, base=base)
        newer = np.flatnonzero(self._changes.export()["step"] > base.step)
        for start in range(0, len(newer), _BLOCK):
            changes = self._changes.export(newer[start : start + _BLOCK])
            store._write(changes["keys"], self.lookup(changes["keys"]))
            store._changes.put(changes["keys"], changes)
        store._digest, store._size = self._digest, self._size
        return store

    def __len__(self) -> int:
        return self._size

    @property
    def changed(self) -> int:
        """Number of rows that were changed over the snapshot's."""
        return len(self._changes)

    @property
    def nbytes(self) -> int:
        """Memory, without the mapped files."""
        own = self._ids.nbytes + written_bytes(self._values, self._written)
        return own + (self._changes.nbytes if self._base else 0)

    @property
    def digest(self) -> int:
        """Digest of all rows, modulo 2⁶⁴, as ``parameter_server.publish.published`` computes it. Each change
        updates it by the rows that it replaces, so a corrupt row shows once it changes again."""
        return self._digest

    def lookup(self, keys: Keys) -> Rows:
        """Rows of keys, (N, D)."""
        if self._base is not None:
            out, places = self._base.lookup(keys, over=(self._ids.index, self._values))
            missing = places == EMPTY
        else:
            out = np.empty((len(keys), self.config.dim), np.float32)
            missing = np.zeros(len(keys), np.bool_)
            if self._ids.gather(keys, self._values, out):
                missing = self._ids.find(keys) < 0
        if missing.any():
            out[missing] = initial_rows(self.config, self._seed, keys[missing])
        return out

    def has(self, keys: Keys) -> Mask:
        """Mask of the keys that have a row (N,)."""
        return self._present(keys)[1]

    def _present(self, keys: Keys) -> tuple[Rows, Mask]:
        """Rows of keys (N, D), and a mask of those that there are (N,). Others are undefined."""
        if self._base is None:
            slots = self._ids.find(keys)
            return self._values[slots], slots >= 0
        rows, places = self._base.lookup(keys, over=(self._ids.index, self._values))
        slots = self._changes.find(keys)
        gone = self._changes.columns["gone"][slots] & (slots >= 0)
        return rows, (places != EMPTY) & ~gone

    def set(self, keys: Keys, values: Rows, step: int = 0) -> None:
        """Overwrites the rows of distinct keys. ``step``: after which they are so."""
        before, present = self._present(keys)
        self._count(keys, before, -1, present)
        self._count(keys, values, 1)
        self._write(keys, values)
        self._note(keys, step, False)

    def remove(self, keys: Keys, step: int = 0) -> None:
        """Drops rows: their ids return to the initial value."""
        before, present = self._present(keys)
        self._count(keys, before, -1, present)
        keys = keys[present]
        if self._base is not None:  # hides the base's rows
            self._write(keys, initial_rows(self.config, self._seed, keys))
            self._note(keys, step, True)
        elif len(keys):
            self._ids.remove(self._ids.find(keys)).apply(self._values)

    def reserve(self, more: int) -> None:
        """Makes room for more rows. Another thread may read meanwhile, and none may write."""
        self._ids.reserve(more)
        self._values = grown(self._values, len(self._ids) + more)
        if self._base is not None:
            self._changes.reserve(more)

    def export(self) -> tuple[Keys, Rows]:
        """All keys, ascending, with their rows: the input of a digest."""
        keys = [self._ids.keys[self.has(self._ids.keys)]]
        if self._base is not None:
            keys += [block[self._ids.find(block) < 0] for block, _ in self._base.blocks()]
        every = np.sort(np.concatenate(keys))
        return every, self.lookup(every)

    def _write(self, keys: Keys, values: Rows) -> None:
        slots = self._ids.insert(keys)
        self._values = grown(self._values, len(self._ids))
        self._written = max(self._written, len(self._ids))
        self._values[slots] = values

    def _note(self, keys: Keys, step: int, gone: bool) -> None:
        if self._base is not None:
            columns = {"step": np.full(len(keys), step), "gone": np.full(len(keys), gone)}
            self._changes.put(keys, columns)

    def _count(self, keys: Keys, rows: Rows, sign: int, chosen: Mask | None = None) -> None:
        chosen = np.ones(len(keys), np.bool_) if chosen is None else chosen
        change = digest_of_rows(self._digest_seed, keys, rows, chosen)
        self._digest = (self._digest + sign * change) % 2**64
        self._size += sign * int(chosen.sum())
