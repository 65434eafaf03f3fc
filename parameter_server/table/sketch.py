"""A count of sightings in bounded memory: which ids have been seen often enough for a row of their own.

A count-min sketch (Cormode, Muthukrishnan 2005) cut into blocks of 64 one-byte cells, so that a sighting
costs one cache line. An estimate is never below what was seen since its block was last halved, and above it
where ids clash; an id may so get its row early, never another id's row. A block is halved when it has taken
in so many sightings that more would make clashes common: what is seen again soon counts, what was seen once
is forgotten.

Blocks are ranges of the hash that shards are ranges of too. So the sketch of a table is the same bits however
many shards hold it, as long as their number divides the blocks.
"""

# B blocks of a table, K blocks that one shard holds, N keys in a batch

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table import kernels
from parameter_server.table.routing import Keys

CELLS: Final = 64  # of a block, one byte each: one cache line
BLOCK_BYTES: Final = CELLS + 4  # with the number of sightings in it
UNIT: Final = (
    5040  # blocks come in multiples of it: 1 to 10, 12, 14, 15, 16 and many more divide it
)
MOST: Final = 255  # what a cell can count to
SKETCH_COLUMNS: Final = ("sketch_at", "sketch_cells", "sketch_added")


def blocks_of(sketch_mb: float) -> int:
    """How many blocks a sketch of about so many MiB has, over all shards of a table."""
    return max(1, round(sketch_mb * 2**20 / BLOCK_BYTES / UNIT)) * UNIT


def check_parts(blocks: int, parts: int) -> None:
    """Raises ValueError where shards would share a block."""
    if blocks % parts:
        raise ValueError(
            f"parts is {parts}, expected a divisor of {blocks}: a table with admit_after above 1 counts "
            f"sightings in {blocks} blocks, and a block has one shard; take 8, 16 or another divisor, or "
            "admit_after 1"
        )


class Sketch:
    """The blocks of one table that shard ``part`` of ``parts`` holds. Not thread-safe; the owner locks."""

    def __init__(self, seed: int, blocks: int, enough: int, part: int = 0, parts: int = 1) -> None:
        """``enough``: the sightings that an id needs. Raises ValueError where shards would share a block."""
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
        """How many sightings it remembers."""
        return int(self._added.sum(dtype=np.int64))

    def see(self, keys: Keys, counts: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Counts the sightings of keys (N,); says of each whether it has now been seen often enough, (N,)."""
        enough = np.empty(len(keys), np.bool_)
        counts = np.ascontiguousarray(counts, np.int32)
        kernels.count_sightings(self._cells, self._added, self._first, self._blocks, self._seed, keys, counts,
                      self._enough, self._window, enough)  # fmt: skip
        return enough

    def export(self) -> dict[str, NDArray[Any]]:
        """Copies of everything, and which of how many blocks these are."""
        at = np.array([self._first, self._blocks], np.int64)
        return {
            "sketch_at": at,
            "sketch_cells": self._cells.copy(),
            "sketch_added": self._added.copy(),
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes the blocks that it holds from an export, its own or of other shards. A sketch of another size
        can't be used: counting then begins anew."""
        first, blocks = arrays["sketch_at"].tolist()
        if blocks != self._blocks:
            return
        start = max(first, self._first)
        stop = min(first + len(arrays["sketch_added"]), self._first + len(self._added))
        if start < stop:
            own, theirs = (
                slice(start - self._first, stop - self._first),
                slice(start - first, stop - first),
            )
            self._cells[own] = arrays["sketch_cells"][theirs]
            self._added[own] = arrays["sketch_added"][theirs]
