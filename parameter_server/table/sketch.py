"""Admission sketch: counts sightings in bounded memory, to give rows only to ids seen often enough.

A count-min sketch (Cormode, Muthukrishnan 2005) in blocks of 64 one-byte cells, so a sighting costs one cache
line. An estimate is at least the count since its block was last halved, and higher where ids collide. A block
is halved before collisions become common. Blocks are ranges of the same hash that shards are ranges of: a
table's sketch has the same bits for any number of shards that divides the number of blocks.
"""

# K blocks of one shard, N keys in a batch

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table import kernels
from parameter_server.table.routing import Keys

CELLS: Final = 64  # one-byte cells of a block: one cache line
BLOCK_BYTES: Final = CELLS + 4  # with the number of sightings in it
# Numbers of blocks are multiples of it: 1 to 10, 12, 14, 15, 16 and many more divide it.
BLOCK_UNIT: Final = 5040
SKETCH_COLUMNS: Final = ("sketch_at", "sketch_cells", "sketch_added")


def blocks_of(sketch_mb: float) -> int:
    """Number of blocks of a sketch of about ``sketch_mb`` MiB, over all shards of a table."""
    return max(1, round(sketch_mb * 2**20 / BLOCK_BYTES / BLOCK_UNIT)) * BLOCK_UNIT


def check_parts(blocks: int, parts: int) -> None:
    """Raises ValueError where shards would share a block."""
    if blocks % parts:
        raise ValueError(
            f"parts is {parts}, expected a divisor of {blocks}: a table with admit_after above 1 counts "
            f"sightings in {blocks} blocks, each on one shard; use 8, 16 or another divisor, or admit_after 1"
        )


class Sketch:
    """Blocks of one table on shard ``part`` of ``parts``. Not thread-safe; the owner locks."""

    def __init__(self, seed: int, blocks: int, enough: int, part: int = 0, parts: int = 1) -> None:
        """``enough``: sightings that an id needs. Raises ValueError if shards would share a block."""
        check_parts(blocks, parts)
        self._seed, self._blocks, self._enough = np.uint64(seed), blocks, enough
        self._first = blocks // parts * part
        self._window = 16 * (enough - 1)  # sightings, after which a block is halved
        self._cells = np.zeros((blocks // parts, CELLS), np.uint8)
        self._added = np.zeros(blocks // parts, np.uint32)

    @property
    def nbytes(self) -> int:
        return self._cells.nbytes + self._added.nbytes

    @property
    def sightings(self) -> int:
        return int(self._added.sum(dtype=np.int64))

    def see(self, keys: Keys, counts: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Counts sightings of keys (N,); returns a mask of those now seen often enough (N,)."""
        enough = np.empty(len(keys), np.bool_)
        counts = np.ascontiguousarray(counts, np.int32)
        kernels.count_sightings(self._cells, self._added, self._first, self._blocks, self._seed, keys, counts,
                      self._enough, self._window, enough)  # fmt: skip
        return enough

    def export(self) -> dict[str, NDArray[Any]]:
        """Copies of all state. "sketch_at": (first block, number of blocks of the table)."""
        return {
            "sketch_at": np.array([self._first, self._blocks], np.int64),
            "sketch_cells": self._cells.copy(),
            "sketch_added": self._added.copy(),
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copies this shard's blocks from an export of any shard. Ignores a sketch of another size: counting
        begins anew."""
        first, blocks = arrays["sketch_at"].tolist()
        if blocks != self._blocks:
            return
        start = max(first, self._first)
        stop = min(first + len(arrays["sketch_added"]), self._first + len(self._added))
        if start < stop:
            target = slice(start - self._first, stop - self._first)
            source = slice(start - first, stop - first)
            self._cells[target] = arrays["sketch_cells"][source]
            self._added[target] = arrays["sketch_added"][source]
