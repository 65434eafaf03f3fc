"""The indexes of all retrieval shards in one place: for the reconstruction of past answers.

Items belong to the same shards, are numbered in the same order, and are searched and merged by the same code,
so the hits equal those of the shards to the last bit, exact or from lists. Hits of a shard that gave no
answer are missing here as well.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import shard_of
from recsys.arrays.bitmap import Bitmap
from recsys.features.catalogue import Catalogue
from serving.index.exact_order import Hits, Indices, Vectors
from serving.index.index_files import index_named
from serving.index.item_index import ABSENT, FLAT, FlatIndex, ItemIndex, Mask
from serving.index.nearest import Overlay, merge_hits, nearest

Keys = NDArray[np.int64]
_BLOCK: Final = 4096


class ShardedIndex(ItemIndex):
    """An ``ItemIndex`` of several shards, of which some may be absent. ``keys``: of all items, by index."""

    name = ""

    def __init__(
        self, name: str, indexes: list[ItemIndex | None], dim: int, keys: Callable[[], Keys]
    ) -> None:
        self.name, self.dim, self._indexes, self._keys = name, dim, indexes, keys
        self.missing = None in indexes
        self._all = FlatIndex(dim)
        self._shard = np.empty(0, np.int64)  # of each item
        self._number = np.empty(0, np.int64)  # of each item, in its shard
        self._counts = np.zeros(len(indexes), np.int64)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def vectors(self) -> Vectors:
        return self._all.vectors

    def empty(self) -> "ShardedIndex":
        indexes = [None if index is None else index.empty() for index in self._indexes]
        return ShardedIndex(self.name, indexes, self.dim, self._keys)

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        if not len(indices):
            return
        self._all.set(indices, vectors, alive)
        self._number_up_to(len(self._all))
        for shard, index in enumerate(self._indexes):
            own = self._shard[indices] == shard
            if index is not None and own.any():
                own_alive = None if alive is None else alive[own]
                index.set(self._number[indices[own]], vectors[own], own_alive)

    def _number_up_to(self, count: int) -> None:
        """Numbers new items: in each shard, in the order in which they came."""
        new = np.arange(len(self._shard), count)
        shards = shard_of(np.ascontiguousarray(self._keys()[new]), len(self._indexes))
        numbers = np.empty(len(new), np.int64)
        for shard in range(len(self._indexes)):
            own = shards == shard
            numbers[own] = self._counts[shard] + np.arange(own.sum())
            self._counts[shard] += own.sum()
        self._shard = np.concatenate([self._shard, shards])
        self._number = np.concatenate([self._number, numbers])

    def search(self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False) -> Hits:
        keys, mask, none = self._keys()[: len(self)], wanted.mask(), Overlay.none(self.dim)
        hits = [(np.empty(0, np.int64), np.empty(0, np.float32))]
        for shard, index in enumerate(self._indexes):
            own = np.flatnonzero(self._shard == shard)
            if index is not None:
                own_wanted, own_keys = Bitmap.of(mask[own]), np.ascontiguousarray(keys[own])
                hits.append(nearest(index, own_keys, query_V, k, own_wanted, none, rough))
        best, products = merge_hits(hits, k)
        order = np.argsort(keys, kind="stable")
        indices: Indices = order[np.searchsorted(keys, best, sorter=order)]
        return indices, products


def as_named(folder: Path, name: str, index: ItemIndex, catalogue: Catalogue) -> ItemIndex:
    """The index that a stamp names, of one or of several shards, with the vectors of ``index``, which is
    returned where it has the name. Raises ValueError as ``index_named``."""
    if index.name == name:
        return index
    if ":" not in name:
        named = index_named(folder, name, index.dim, len(index))
    else:
        indexes: list[ItemIndex | None] = []
        for part in name.partition(":")[2].split("+"):
            centroids = "" if part == FLAT else part
            indexes.append(None if part == ABSENT else index_named(folder, centroids, index.dim))
        named = ShardedIndex(name, indexes, index.dim, lambda: catalogue.keys[:, 0])
    for start in range(0, len(index), _BLOCK):
        block = np.arange(start, min(len(index), start + _BLOCK))
        named.set(block, index.vectors[block], catalogue.alive[block])
    return named
