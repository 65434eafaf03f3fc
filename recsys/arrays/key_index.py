"""Hash index from 64-bit keys to row positions ("places"), as compiled loops with open addressing.

An index is int64 (H, 2): [key, place]; place -1 marks an empty cell. Probing is linear from a key's home, the
low half of ``mix(key)`` scaled to H: H may be any number below 2³², so an index can grow by less than
doubling. At least one cell must be empty. Deletion shifts entries back, so it leaves no tombstones.
"""

import math
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, mix, read_only
from recsys.arrays.prefetch import LINE, prefetch_line

EMPTY: Final = -1
# Maximum load factor. At 0.7 a lookup takes 1.5 times as long; below 0.62 a row of 32 floats takes more than
# 1.5 times the memory of its floats.
LOAD: Final = 0.62
# Keys between a prefetch and its use: memory takes about as long as a dozen cells that are in a cache.
AHEAD: Final = 12
_LOW_HALF = np.uint64(0xFFFF_FFFF)
_int = types.int64
_KEYS, _INDEX, _OUT = read_only(_int, 1), _int[:, ::1], _int[::1]
_ROWS, _ROWS_OUT = read_only(types.float32, 2), types.float32[:, ::1]


# Saved in catalogue snapshots: raise catalogue_snapshot._FORMAT when this changes.
@kernel(types.uint64(_int, types.uint64))
def home_of(key: Any, cells: Any) -> Any:
    """The cell at which probing for a key starts. It uses the low half: the high half chose the shard."""
    return ((mix(np.uint64(key)) & _LOW_HALF) * cells) >> np.uint64(32)


@kernel(_int(read_only(_int, 2), _int))
def place_of(index: Any, key: Any) -> Any:
    """The place of one key, or EMPTY."""
    one, zero, cells = np.uint64(1), np.uint64(0), np.uint64(index.shape[0])
    cell = home_of(key, cells)
    while index[cell, 1] >= 0 and index[cell, 0] != key:
        cell = cell + one if cell + one < cells else zero
    return index[cell, 1]


@kernel(types.void(read_only(_int, 2), _int))
def prefetch_cell(index: Any, key: Any) -> None:
    """Prefetches the cell at which probing for a key starts."""
    prefetch_line(index, np.int64(home_of(key, np.uint64(index.shape[0]))) * 16)


@kernel(types.void(read_only(_int, 2), _KEYS, _OUT))
def find(index: Any, keys: Any, places: Any) -> None:
    """Writes the place of each key, or EMPTY."""
    for i in range(keys.shape[0]):
        if i + AHEAD < keys.shape[0]:
            prefetch_cell(index, keys[i + AHEAD])
        places[i] = place_of(index, keys[i])


@kernel(_int(_INDEX, _OUT, _int, _KEYS, _OUT))
def insert(index: Any, placed_keys: Any, count: Any, keys: Any, places: Any) -> Any:
    """Writes each key's place, assigning the next after ``count`` to new keys; returns the new number of
    keys.

    The caller has made room for ``len(keys)`` more in both ``index`` and ``placed_keys``.
    """
    one, zero, cells = np.uint64(1), np.uint64(0), np.uint64(index.shape[0])
    for i in range(keys.shape[0]):
        key = keys[i]
        cell = home_of(key, cells)
        while index[cell, 1] >= 0 and index[cell, 0] != key:
            cell = cell + one if cell + one < cells else zero
        if index[cell, 1] < 0:
            index[cell, 0] = key
            index[cell, 1] = count
            placed_keys[count] = key
            count += 1
        places[i] = index[cell, 1]
    return count


@kernel(types.void(_INDEX, _KEYS))
def erase(index: Any, keys: Any) -> None:
    """Removes keys from the index and shifts later entries back (Knuth 6.4, algorithm R)."""
    one, zero, cells = np.uint64(1), np.uint64(0), np.uint64(index.shape[0])
    for i in range(keys.shape[0]):
        key = keys[i]
        cell = home_of(key, cells)
        while index[cell, 1] >= 0 and index[cell, 0] != key:
            cell = cell + one if cell + one < cells else zero
        if index[cell, 1] < 0:
            continue
        hole = cell
        cell = cell + one if cell + one < cells else zero
        while index[cell, 1] >= 0:
            home = home_of(index[cell, 0], cells)
            pushed = cell - home if cell >= home else cell + cells - home
            behind = cell - hole if cell >= hole else cell + cells - hole
            if pushed >= behind:
                index[hole, 0] = index[cell, 0]
                index[hole, 1] = index[cell, 1]
                hole = cell
            cell = cell + one if cell + one < cells else zero
        index[hole, 1] = EMPTY


@kernel(types.void(_INDEX, _KEYS, _KEYS))
def move(index: Any, keys: Any, slots: Any) -> None:
    """Sets new slots for keys that are in the index."""
    one, zero, cells = np.uint64(1), np.uint64(0), np.uint64(index.shape[0])
    for i in range(keys.shape[0]):
        cell = home_of(keys[i], cells)
        while index[cell, 0] != keys[i] or index[cell, 1] < 0:
            cell = cell + one if cell + one < cells else zero
        index[cell, 1] = slots[i]


@kernel(_int(read_only(_int, 2), _KEYS, _ROWS, _ROWS_OUT))
def gather_rows(index: Any, keys: Any, values: Any, out: Any) -> Any:
    """Copies the rows of keys; returns the number of missing keys. All cells are prefetched first, then all
    slots found and prefetched."""
    size, dim, missing = keys.shape[0], values.shape[1], 0
    slots = np.empty(size, np.int64)
    for i in range(size):
        prefetch_cell(index, keys[i])
    for i in range(size):
        slots[i] = place_of(index, keys[i])
        for byte in range(0, 4 * dim if slots[i] >= 0 else 0, LINE):
            prefetch_line(values, slots[i] * 4 * dim + byte)
    for i in range(size):
        if slots[i] < 0:
            missing += 1
            continue
        slot = np.uint64(slots[i])
        for j in range(dim):
            out[i, j] = values[slot, j]
    return missing


@kernel(types.void(read_only(_int, 2), _INDEX))
def spread(index: Any, out: Any) -> None:
    """Copies all entries of an index into an empty, larger one, cell by cell: homes are scaled hashes, so
    this writes memory nearly from front to back, several times faster than in the order of places."""
    one, zero, cells = np.uint64(1), np.uint64(0), np.uint64(out.shape[0])
    for i in range(index.shape[0]):
        if index[i, 1] < 0:
            continue
        cell = home_of(index[i, 0], cells)
        while out[cell, 1] >= 0:
            cell = cell + one if cell + one < cells else zero
        out[cell, 0] = index[i, 0]
        out[cell, 1] = index[i, 1]


def empty_index(cells: int) -> NDArray[np.int64]:
    """An empty index with the given number of cells."""
    index = np.empty((cells, 2), np.int64)
    index[:, 1] = EMPTY
    return index


def widened(index: NDArray[np.int64], cells: int) -> NDArray[np.int64]:
    """A copy with ``cells`` cells, which must exceed the number of keys."""
    out = empty_index(cells)
    spread(index, out)
    return out


def cells_for(keys: int) -> int:
    """Number of cells needed for ``keys`` keys."""
    return max(8, math.ceil(keys / LOAD))
