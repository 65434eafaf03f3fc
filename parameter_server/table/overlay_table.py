"""Copy-on-write table over the read-only rows of a snapshot.

Most rows of a candidate never change while it is judged, so they are read from the snapshot's mapped file
through an index of four bytes a cell. A row is copied before its first change. Otherwise it behaves as
``Table``: same steps, lookups, exports and digests, bit for bit.
"""

# N keys in a batch, D dimension, R rows of the snapshot, H cells of its index

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from parameter_server.table import kernels
from parameter_server.table.routing import Keys, Rows, as_keys
from parameter_server.table.table import (
    EVICTED_FRACTION,
    MAX_GRADIENT,
    MAX_REMOVED,
    ROW_COLUMNS,
    Table,
    least_recently_used,
)
from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.id_map import Arrays
from recsys.arrays.key_index import EMPTY, LOAD, home_of
from recsys.arrays.prefetch import LINE, prefetch_line
from recsys.config.system_config import TableConfig

_LEFT: Final = -2  # tombstone: probing goes on behind it
_int, _cell, _float = types.int64, types.int32, types.float32
_CELLS, _KEYS, _ROWS = read_only(_cell, 1), read_only(_int, 1), read_only(_float, 2)


@kernel(types.uint64(_CELLS, _KEYS, _int))
def _cell_of(index: Any, base_keys: Any, key: Any) -> Any:
    """Cell of one key, or the empty cell for it."""
    one, zero, cells = np.uint64(1), np.uint64(0), np.uint64(index.shape[0])
    cell = home_of(key, cells)
    while index[cell] != EMPTY and (index[cell] < 0 or base_keys[np.uint64(index[cell])] != key):
        cell = cell + one if cell + one < cells else zero
    return cell


@kernel(types.void(_cell[::1], _KEYS))
def _fill(index: Any, base_keys: Any) -> None:
    """Fills an empty index with the places of distinct keys."""
    for place in range(base_keys.shape[0]):
        index[_cell_of(index, base_keys, base_keys[place])] = place


@kernel(types.void(_CELLS, _KEYS, _KEYS, _int[::1]))
def _find(index: Any, base_keys: Any, keys: Any, places: Any) -> None:
    """Writes the place of each key, EMPTY for missing ones."""
    for i in range(keys.shape[0]):
        places[i] = index[_cell_of(index, base_keys, keys[i])]


@kernel(types.void(_cell[::1], _KEYS, _KEYS))
def _leave(index: Any, base_keys: Any, keys: Any) -> None:
    """Removes keys that are present."""
    for i in range(keys.shape[0]):
        index[_cell_of(index, base_keys, keys[i])] = _LEFT


@kernel(_int(_CELLS, _KEYS, _ROWS, _ROWS, _KEYS, _int[::1], _float[:, ::1]))
def _gather(index: Any, base_keys: Any, base_rows: Any, rows: Any, keys: Any, slots: Any, out: Any) -> Any:
    """Copies the rows of keys, from ``rows`` if they have a slot, else from the base; returns the number of
    missing keys, whose slots stay EMPTY and whose rows of ``out`` stay unchanged. Other slots become 0 or
    more. All places are found and prefetched first."""
    size, dim, missing = keys.shape[0], out.shape[1], 0
    places = np.empty(size, np.int64)
    for i in range(size):
        if slots[i] >= 0:
            for byte in range(0, 4 * dim, LINE):
                prefetch_line(rows, slots[i] * 4 * dim + byte)
            continue
        places[i] = index[_cell_of(index, base_keys, keys[i])]
        for byte in range(0, 4 * dim if places[i] >= 0 else 0, LINE):
            prefetch_line(base_rows, places[i] * 4 * dim + byte)
    for i in range(size):
        if slots[i] >= 0:
            slot = np.uint64(slots[i])
            for j in range(dim):
                out[i, j] = rows[slot, j]
        elif places[i] >= 0:
            place = np.uint64(places[i])
            for j in range(dim):
                out[i, j] = base_rows[place, j]
            slots[i] = places[i]
        else:
            missing += 1
    return missing


class BaseRows:
    """Read-only rows of a snapshot by key. Rows may be removed, never changed or added back."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """``arrays``: the ``ROW_COLUMNS``, with distinct keys; may be read-only."""
        self._columns: Arrays = {name: arrays[name] for name in ROW_COLUMNS}
        self.keys, self.values = self._columns["keys"], self._columns["values"]
        self.used_ms = self._columns["used_ms"]
        self._index = np.full(max(8, math.ceil(len(self.keys) / LOAD)), EMPTY, np.int32)
        _fill(self._index, self.keys)
        self._count = len(self.keys)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory of the index, without the arrays."""
        return self._index.nbytes

    @property
    def places(self) -> Keys:
        """Places of the remaining rows, ascending."""
        if self._count == len(self.keys):
            return np.arange(self._count)
        return np.sort(self._index[self._index >= 0]).astype(np.int64)

    def find(self, keys: Keys) -> Keys:
        """Place of each key (N,), EMPTY for missing ones."""
        places = np.full(len(keys), EMPTY, np.int64)
        if self._count:
            _find(self._index, self.keys, keys, places)
        return places

    def gather(self, keys: Keys, slots: Keys, rows: Rows, out: Rows) -> int:
        return int(_gather(self._index, self.keys, self.values, rows, keys, slots, out))

    def rows(self, places: Keys) -> Arrays:
        """Copies of the rows at ``places``, by column."""
        return {name: column.take(places, axis=0) for name, column in self._columns.items()}

    def leave(self, keys: Keys) -> None:
        """Removes the rows of distinct keys, all present."""
        _leave(self._index, self.keys, keys)
        self._count -= len(keys)


class OverlayTable(Table):
    """``Table`` whose unchanged rows are those of a base. Each key has its row in one of the two. The budget
    counts all rows as if in memory, so the same rows are evicted as in a ``Table``; they are copied first."""

    def __init__(
        self, base: BaseRows, config: TableConfig, seed: int, bound: float = MAX_GRADIENT, part: int = 0,
        parts: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(config, seed, bound, part, parts)
        self._base = base

    def __len__(self) -> int:
        return len(self._ids) + len(self._base)

    @property
    def changed(self) -> int:
        """Number of rows in memory: changed or new ones."""
        return len(self._ids)

    @property
    def nbytes(self) -> int:
        """Memory of the table without the base's arrays, which are the system's file cache if mapped."""
        return super().nbytes + self._base.nbytes

    def lookup_known(self, keys: Keys) -> tuple[Rows, NDArray[np.bool_]]:
        keys = as_keys(keys)
        out = np.empty((len(keys), self.config.dim), np.float32)
        slots = self._ids.find(keys) if len(self._ids) else np.full(len(keys), EMPTY, np.int64)
        missing = self._base.gather(keys, slots, self._ids.columns["values"], out)
        present = slots >= 0
        if missing:
            targets = np.where(present, EMPTY, np.arange(len(keys)))
            kernels.draw(self._seed, self.config.initial, keys, targets, out)
        return out, present

    def expire(self, now_ms: int, keys: Keys) -> Keys:
        keys = as_keys(keys)
        places = self._base.find(keys)
        old = places >= 0
        old[old] = self._base.used_ms[places[old]] < now_ms - 1000 * self.config.ttl_s
        self._base.leave(keys[old])
        return np.sort(np.concatenate([keys[old], super().expire(now_ms, keys)]))

    def stale(self, now_ms: int) -> Keys:
        changed = super().stale(now_ms)
        if not self.config.ttl_s or not len(self._base):
            return changed
        keys = self._base.keys[self._base.used_ms < now_ms - 1000 * self.config.ttl_s]
        places = self._base.find(keys)
        keys, places = keys[places >= 0], places[places >= 0]
        both = np.concatenate([changed, keys])
        if len(both) > MAX_REMOVED:
            used_ms = self._ids.columns["used_ms"][self._ids.find(changed)]
            used_ms = np.concatenate([used_ms, self._base.used_ms[places]])
            both = both[least_recently_used(both, used_ms, MAX_REMOVED)]
        return np.sort(both)

    def remove(self, keys: Keys) -> Keys:
        keys = as_keys(keys)
        gone = keys[self._base.find(keys) >= 0]
        self._base.leave(gone)
        return np.sort(np.concatenate([gone, super().remove(keys)]))

    def replace(self, rows: Mapping[str, NDArray[Any]], removed: Keys) -> None:
        """Applies an increment: drops the removed keys and replaces rows (given by column)."""
        self.remove(removed)
        self.remove(rows["keys"])
        self.load(rows)

    def export(self) -> Arrays:
        changed, base = super().export(), self._base.rows(self._base.places)
        return changed | {name: np.concatenate([base[name], changed[name]]) for name in ROW_COLUMNS}

    def blocks(self, rows: int) -> Iterator[tuple[Keys, Rows]]:
        """All keys and values, in blocks of up to ``rows``."""
        places = self._base.places
        for start in range(0, len(places), rows):
            block = places[start : start + rows]
            yield self._base.keys[block], self._base.values[block]
        for start in range(0, len(self._ids), rows):
            stop = min(start + rows, len(self._ids))
            yield self._ids.keys[start:stop], self._ids.columns["values"][start:stop]

    def _to_change(self, keys: Keys) -> Keys:
        self._copy_from_base(keys)
        return super()._to_change(keys)

    def _make_room(self, rows: int, protected: Keys) -> tuple[Keys, Rows]:
        excess = len(self) + rows - self._limit
        if self._limit and excess > 0 and len(self._base):
            places = self._base.places
            leaving = min(max(excess, int(self._limit * EVICTED_FRACTION)), MAX_REMOVED)
            keys = self._base.keys[places]
            if leaving < len(keys):
                keys = keys[least_recently_used(keys, self._base.used_ms[places], leaving)]
            self._copy_from_base(keys)
        return super()._make_room(rows, protected)

    def _copy_from_base(self, keys: Keys) -> None:
        """Copies the base's rows of distinct keys into memory."""
        if not len(self._base):
            return
        places = self._base.find(keys)
        places = places[places >= 0]
        if len(places):
            rows = self._base.rows(places)
            self._base.leave(rows["keys"])
            self.load(rows)
