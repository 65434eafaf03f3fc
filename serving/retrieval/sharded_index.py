"""All that the shards of retrieval searched, in one place: what a past answer is made again from.

Items fall to the same shards, are numbered in the same order there, and are searched and put together by the
same code. So what is found is what the shards found, exact or from lists, to the last bit; what a shard that
gave no answer would have found isn't found here either.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import shard_of
from recsys.arrays.bitmap import Bitmap
from serving.index.index_files import index_named
from serving.index.item_index import ABSENT, FLAT, FlatIndex, Indices, ItemIndex, Mask, Vectors
from serving.index.nearest import Overlay, merged, nearest

Keys = NDArray[np.int64]
_BLOCK: Final = 4096


class ShardedIndex:
    """An ``ItemIndex`` of several, of which some may be absent. ``keys``: of all items, by index."""

    def __init__(
        self, name: str, parts: list[ItemIndex | None], dim: int, keys: Callable[[], Keys]
    ) -> None:
        self.name, self.dim, self._parts, self._keys = name, dim, parts, keys
        self.missing = None in parts
        self._all = FlatIndex(dim)
        self._shard = np.empty(0, np.int64)  # of each item
        self._number = np.empty(0, np.int64)  # of each item, in its shard
        self._counts = np.zeros(len(parts), np.int64)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def vectors(self) -> Vectors:
        return self._all.vectors

    def empty(self) -> "ShardedIndex":
        parts = [None if part is None else part.empty() for part in self._parts]
        return ShardedIndex(self.name, parts, self.dim, self._keys)

    def reserve(self, more: int) -> None:
        """Nothing: nobody waits for it."""

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        if not len(indices):
            return
        self._all.set(indices, vectors, alive)
        self._number_up_to(len(self._all))
        for shard, part in enumerate(self._parts):
            its = self._shard[indices] == shard
            if part is not None and its.any():
                part.set(
                    self._number[indices[its]], vectors[its], None if alive is None else alive[its]
                )

    def _number_up_to(self, count: int) -> None:
        """Numbers the items that are new: in each shard, in the order in which they came."""
        new = np.arange(len(self._shard), count)
        shards = shard_of(np.ascontiguousarray(self._keys()[new]), len(self._parts))
        numbers = np.empty(len(new), np.int64)
        for shard in range(len(self._parts)):
            its = shards == shard
            numbers[its] = self._counts[shard] + np.arange(its.sum())
            self._counts[shard] += its.sum()
        self._shard = np.concatenate([self._shard, shards])
        self._number = np.concatenate([self._number, numbers])

    def compact(self) -> None:
        """Nothing: nobody waits for it."""

    def search(
        self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False
    ) -> tuple[Indices, Vectors]:
        keys, mask, none = self._keys()[: len(self)], wanted.mask(), Overlay.none(self.dim)
        found = [(np.empty(0, np.int64), np.empty(0, np.float32))]
        for shard, part in enumerate(self._parts):
            its = np.flatnonzero(self._shard == shard)
            if part is not None:
                its_wanted = Bitmap.of(mask[its])
                its_keys = np.ascontiguousarray(keys[its])
                found.append(nearest(part, its_keys, query_V, k, its_wanted, none, rough))
        best, products = merged(found, k)
        order = np.argsort(keys, kind="stable")
        at: Indices = order[np.searchsorted(keys, best, sorter=order)]
        return at, products


def is_sharded(name: str) -> bool:
    """Whether a stamp's ``index`` names several."""
    return ":" in name


def sharded_as_named(
    folder: Path, name: str, index: ItemIndex, keys: Callable[[], Keys], alive: Mask
) -> ItemIndex:
    """The index of several that has this name, with the vectors of another, which is given back where it has
    the name. Raises ValueError where a shard's centroids aren't there."""
    if index.name == name:
        return index
    parts: list[ItemIndex | None] = []
    for its in name.partition(":")[2].split("+"):
        its_name = "" if its == FLAT else its
        parts.append(None if its == ABSENT else index_named(folder, its_name, index.dim))
    made = ShardedIndex(name, parts, index.dim, keys)
    for start in range(0, len(index), _BLOCK):
        some = np.arange(start, min(len(index), start + _BLOCK))
        made.set(some, index.vectors[some], alive[some])
    return made
