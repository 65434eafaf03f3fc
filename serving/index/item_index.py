"""Indexes of item vectors, searched by inner product: the interface, and the exact index, FAISS flat.

A vector's number in the index is its item's index in the catalogue. No index may be changed during a search:
one thread does both. Bitmaps mark the items that may be returned.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from serving.index.exact_order import Hits, Indices, Vectors

Mask = NDArray[np.bool_]


class ItemIndex(Protocol):
    """Vectors (n, V) by catalogue index. ``name`` goes into stamps: an index of the same name and vectors has
    the same hits. ``missing``: whether some of the vectors can't be searched here."""

    dim: int
    missing: bool

    @property
    def name(self) -> str: ...

    @property
    def vectors(self) -> Vectors:
        """The vectors as they are now: a view, valid until the index grows."""

    def __len__(self) -> int: ...

    def empty(self) -> "ItemIndex":
        """Another of the same name, without vectors."""

    def reserve(self, more: int) -> None:
        """Makes room for more vectors, if another thread may search meanwhile; does nothing by default."""
        return

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        """Adds or overwrites vectors of distinct numbers; the index grows to hold the largest. Items that
        aren't ``alive`` keep a vector, and needn't be found."""

    def search(self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False) -> Hits:
        """The k wanted items with the largest inner products: indices and products, best first. ``rough``:
        lower recall will do, as for neighbours of an item."""

    def search_each(self, queries_QV: Vectors, k: int, wanted: Bitmap, rough: bool = False) -> list[Hits]:
        """``search`` for each of several queries."""
        return [self.search(query_V, k, wanted, rough) for query_V in queries_QV]


FLAT: Final = "flat"  # in the name of several: an exact index
ABSENT: Final = "none"  # in the name of several: one that was not searched


def sharded_name(names: Sequence[str | None]) -> str:
    """Name of the searched indexes of several shards: ``2:flat+none``. None: a shard without an answer."""
    parts = (ABSENT if name is None else name or FLAT for name in names)
    return f"{len(names)}:{'+'.join(parts)}"


class FlatIndex(ItemIndex):
    """Exact: compares all vectors. FAISS flat can be changed in place, between searches. It doubles by itself
    and isn't large, so ``reserve``, which would move the searched vectors, does nothing."""

    name = ""
    missing = False

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._index = faiss.IndexFlatIP(dim)
        self._view = np.zeros((0, dim), np.float32)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def vectors(self) -> Vectors:
        return self._view

    def empty(self) -> "FlatIndex":
        return FlatIndex(self.dim)

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        if not len(indices):
            return
        missing = int(indices.max()) + 1 - len(self)
        if missing > 0:
            self._index.add(np.zeros((missing, self.dim), np.float32))
            flat = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.dim)
            self._view = flat.reshape(len(self), self.dim)
        self._view[indices] = vectors

    def search(self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False) -> Hits:
        k = min(k, wanted.count)
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        selector = faiss.IDSelectorBitmap(wanted.bits)
        parameters = faiss.SearchParameters(sel=selector)
        query_1V = np.ascontiguousarray(query_V[None, :])
        products, indices = self._index.search(query_1V, k, params=parameters)
        hit = indices[0] >= 0
        return indices[0][hit], products[0][hit]


class NoIndex(ItemIndex):
    """Stands in where shards hold the vectors: stores none and finds none."""

    name = ""
    missing = True

    def __init__(self, dim: int, shards: int) -> None:
        self.dim, self.shards = dim, shards
        self.name = sharded_name([None] * shards)

    def __len__(self) -> int:
        return 0

    @property
    def vectors(self) -> Vectors:
        return np.zeros((0, self.dim), np.float32)

    def empty(self) -> "NoIndex":
        return NoIndex(self.dim, self.shards)

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        """Stores nothing."""

    def search(self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False) -> Hits:
        return np.empty(0, np.int64), np.empty(0, np.float32)
