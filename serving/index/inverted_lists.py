"""Inverted lists that change in place, with each vector in the list of its nearest centroid.

A search scans the lists whose centroids have the largest products with the query. Its hits are those of the
vectors themselves (serving/index/list_kernels.py), so its result is a function of the centroids, the vectors
and the wanted items, to the last bit, and can be repeated without the history of the lists.
"""

from functools import cached_property
from hashlib import sha256
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown, written_bytes
from serving.index import list_kernels as kernels
from serving.index.exact_order import Hits, Indices, Vectors, largest

# FAISS assigns fewer than 20 vectors without BLAS, whose rounding depends on the batch.
_BATCH: Final = 16


class Centroids:
    """Centroids (C, V) of the lists. Immutable."""

    def __init__(self, vectors_CV: Vectors) -> None:
        self.vectors = np.ascontiguousarray(vectors_CV, np.float32)
        self.count, self.dim = vectors_CV.shape
        self.quantizer = faiss.IndexFlatL2(self.dim)
        self.quantizer.add(self.vectors)

    @property
    def nbytes(self) -> int:
        return 2 * self.vectors.nbytes

    @cached_property
    def digest(self) -> str:
        shape = np.array(self.vectors.shape, np.int64)
        return sha256(shape.tobytes() + self.vectors.tobytes()).hexdigest()[:16]

    def assign(self, vectors_NV: Vectors) -> Indices:
        """List of each vector: that of the nearest centroid, of equals the first."""
        vectors_NV = np.ascontiguousarray(vectors_NV, np.float32)
        lists = np.empty(len(vectors_NV), np.int64)
        for start in range(0, len(vectors_NV), _BATCH):
            nearest = self.quantizer.search(vectors_NV[start : start + _BATCH], 1)[1]
            lists[start : start + _BATCH] = nearest[:, 0]
        return np.maximum(lists, 0)  # -1: a vector with a number that is not finite

    def nearest(self, query_V: Vectors, probes: int) -> Indices:
        """Lists with the largest products of centroid and query, best first, of equals the first."""
        return largest(self.vectors @ query_V, probes)


class InvertedLists:
    """Vectors by number, in lists. One thread changes them, while no other searches."""

    def __init__(self, centroids: Centroids) -> None:
        self.centroids = centroids
        self._codes = np.zeros((0, kernels.BLOCK, centroids.dim), np.int8)
        self._scales = np.zeros((0, kernels.BLOCK), np.float32)
        self._numbers = np.zeros((0, kernels.BLOCK), np.int32)
        self._following = np.zeros(0, np.int32)  # the block after each in its chain, -1 for none
        self._heads = np.full(centroids.count + 1, -1, np.int32)
        self._sizes = np.zeros(centroids.count, np.int32)
        self._list_of, self._place_of = np.full(8, -1, np.int32), np.zeros(8, np.int32)

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def list_of(self, indices: Indices) -> NDArray[np.int32]:
        """List of each vector, -1 where it is in none."""
        out: NDArray[np.int32] = self._list_of[indices]
        return out

    @property
    def nbytes(self) -> int:
        blocks = self._codes, self._scales, self._numbers, self._following
        used = self._blocks_for(len(self))
        lists = self._heads, self._sizes, self._list_of, self._place_of
        written = sum(written_bytes(array, used) for array in blocks)
        return written + sum(array.nbytes for array in lists) + self.centroids.nbytes

    def put(self, indices: Indices, vectors_NV: Vectors) -> int:
        """Adds or moves vectors of distinct numbers; returns how many changed their list, or had none."""
        if not len(indices):
            return 0
        vectors_NV = np.ascontiguousarray(vectors_NV, np.float32)
        count, before = int(indices.max()) + 1, len(self._list_of)
        self._list_of, self._place_of = grown(self._list_of, count), grown(self._place_of, count)
        self._list_of[before:] = -1
        self._reserve(int((self._list_of[indices] < 0).sum()))
        lists = self.centroids.assign(vectors_NV)
        moved = int((self._list_of[indices] != lists).sum())
        self._put(indices, lists, vectors_NV)
        return moved

    def remove(self, indices: Indices) -> None:
        """Takes vectors out of their lists. Those that are in none are ignored."""
        indices = indices[indices < len(self._list_of)]
        none = np.zeros((0, self.centroids.dim), np.float32)
        self._put(indices, np.full(len(indices), -1, np.int64), none)

    def search(
        self, rows_NV: Vectors, query_V: Vectors, k: int, wanted: Bitmap, probes: int
    ) -> Hits:
        """The k wanted vectors with the largest products in the ``probes`` nearest lists, as (indices,
        products): by product, of equals by number. Those without a finite product are dropped. ``rows_NV``:
        all vectors by number, as they were put."""
        query = np.ascontiguousarray(query_V, np.float32)
        k = min(k, wanted.count)
        hits, products = np.empty(k, np.int64), np.empty(k, np.float32)
        if not k or not np.isfinite(query).all():
            return hits[:0], products[:0]
        count = kernels.search(
            self.centroids.nearest(query, probes), query, rows_NV, wanted.bits, self._codes, self._scales,
            self._numbers, self._following, self._heads, self._sizes, products, hits,
        )  # fmt: skip
        return hits[:count], products[:count]

    def _put(self, indices: Indices, lists: Indices, vectors_NV: Vectors) -> None:
        kernels.put(
            np.ascontiguousarray(indices, np.int64), lists, vectors_NV, self._codes, self._scales,
            self._numbers, self._following, self._heads, self._sizes, self._list_of, self._place_of,
        )  # fmt: skip

    def _blocks_for(self, vectors: int) -> int:
        """Number of blocks that always suffices: each list may have one that isn't full."""
        return vectors // kernels.BLOCK + min(vectors, len(self._sizes))

    def _reserve(self, more: int) -> None:
        """Makes room for more vectors."""
        blocks, needed = len(self._codes), self._blocks_for(len(self) + more)
        if needed <= blocks:
            return
        self._codes, self._scales = grown(self._codes, needed), grown(self._scales, needed)
        self._numbers, self._following = (
            grown(self._numbers, needed),
            grown(self._following, needed),
        )
        self._following[blocks:] = np.arange(blocks + 1, len(self._following) + 1)
        self._following[-1], self._heads[-1] = self._heads[-1], blocks
