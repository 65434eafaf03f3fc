"""The item vectors, searched by inner product: what every index does, and the exact one, FAISS flat.

A vector's number in the index is its item's index in the catalogue. No index is safe to change while it is
searched: one thread does both. Which items are gone, or not wanted in this request, bits say.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]


class ItemIndex(Protocol):
    """Vectors (n, V) by catalogue index. ``name`` is what a stamp says: with it and the vectors, whoever is
    asked again finds the same. ``missing``: whether some of the vectors can't be searched here."""

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
        """Makes room for so many more vectors, if what is copied for that may be while another searches."""

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        """Adds or overwrites vectors of distinct numbers; the index grows to hold the largest. Those that
        aren't ``alive`` keep a vector, and needn't be found."""

    def compact(self) -> None:
        """All that there is has been set: puts it as a search reads it fastest. None may search meanwhile."""

    def search(
        self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False
    ) -> tuple[Indices, Vectors]:
        """The k wanted items with the largest inner product: indices and products, best first. ``rough``:
        some of them will do, where others are as good, as beside an item."""


FLAT: Final = "flat"  # in the name of several: one that is exact
ABSENT: Final = "none"  # one that wasn't searched


def sharded_name(names: Sequence[str | None]) -> str:
    """The name of what several shards searched, by the names of their indexes: ``2:flat+none``. None: a shard
    that gave no answer."""
    its = (ABSENT if name is None else name or FLAT for name in names)
    return f"{len(names)}:{'+'.join(its)}"


class FlatIndex:
    """Exact: all vectors are looked through. FAISS flat can be changed in place, between searches."""

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

    def reserve(self, more: int) -> None:
        """Nothing: FAISS would move what is searched. It doubles by itself, and isn't large."""

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        if not len(indices):
            return
        missing = int(indices.max()) + 1 - len(self)
        if missing > 0:
            self._index.add(np.zeros((missing, self.dim), np.float32))
            flat = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.dim)
            self._view = flat.reshape(len(self), self.dim)
        self._view[indices] = vectors

    def compact(self) -> None:
        """Nothing: all of it is read from front to back."""

    def search(
        self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False
    ) -> tuple[Indices, Vectors]:
        k = min(k, wanted.count)
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        selector = faiss.IDSelectorBitmap(wanted.bits)
        found = self._index.search(
            np.ascontiguousarray(query_V[None, :]), k, params=faiss.SearchParameters(sel=selector)
        )
        indices: Indices = found[1][0]
        return indices[indices >= 0], found[0][0][indices >= 0]


class NoIndex:
    """Where so many shards hold the vectors: takes none and finds none."""

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

    def reserve(self, more: int) -> None:
        """Nothing is kept."""

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        """Nothing is kept."""

    def compact(self) -> None:
        """Nothing is kept."""

    def search(
        self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False
    ) -> tuple[Indices, Vectors]:
        return np.empty(0, np.int64), np.empty(0, np.float32)
