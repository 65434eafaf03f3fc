"""Inverted lists that change in place: FAISS's, with each vector in the list of its nearest centroid.

A search scans the lists whose centroids have the largest products with the query. The lists hold float16
numbers, since a search mostly waits for memory; its hits are ordered by the vectors themselves. So its result
is a function of the centroids, the vectors and the wanted items, to the last bit
(serving/index/exact_order.py), and can be repeated without the history of the lists.
"""

from functools import cached_property
from hashlib import sha256
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown
from serving.index.exact_order import (
    Hits,
    Indices,
    Vectors,
    best_of,
    errors_of,
    exact_best,
    first_size,
    largest,
    largest_parts,
)

# FAISS assigns fewer than 20 vectors without BLAS, whose rounding depends on the batch.
_BATCH: Final = 16
_LARGEST: Final = float(np.finfo(np.float16).max)


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
        # One list more than there are centroids: searches never probe it, and it holds removed vectors.
        self._index = faiss.IndexIVFScalarQuantizer(
            centroids.quantizer, centroids.dim, centroids.count + 1,
            faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False,
        )  # fmt: skip
        self._index.is_trained = True  # FAISS expects as many lists as centroids
        self._index.set_direct_map_type(faiss.DirectMap.Array)
        self._list_of = np.full(8, -1, np.int32)
        self._largest_V = np.zeros(centroids.dim, np.float32)
        self._errors_V = errors_of(self._largest_V)

    def list_of(self, indices: Indices) -> NDArray[np.int32]:
        """List of each vector, -1 where it is in none."""
        out: NDArray[np.int32] = self._list_of[indices]
        return out

    @property
    def assigned(self) -> NDArray[np.int32]:
        """List of each vector: a view."""
        return self._list_of[: int(self._index.ntotal)]

    @property
    def nbytes(self) -> int:
        entry: int = 2 * self.centroids.dim + 8 + 8 + 4  # vector, id, place, list
        return int(self._index.ntotal) * entry + self.centroids.nbytes

    def restore(self, vectors_NV: Vectors, lists_N: NDArray[np.int32]) -> None:
        """Fills empty lists with vectors and their ``assigned`` lists."""
        lists = np.where(lists_N < 0, self.centroids.count, lists_N).astype(np.int64)
        vectors_NV = np.ascontiguousarray(vectors_NV)
        self._index.add_core(len(lists), faiss.swig_ptr(vectors_NV), None, faiss.swig_ptr(lists))
        self._list_of = lists_N.copy()
        self._note_sizes(vectors_NV)

    def put(self, indices: Indices, vectors_NV: Vectors) -> int:
        """Adds or moves vectors of distinct numbers; returns how many changed their list, or had none."""
        if not len(indices):
            return 0
        vectors_NV = np.ascontiguousarray(vectors_NV, np.float32)
        self._add_up_to(int(indices.max()) + 1)
        self._note_sizes(vectors_NV)
        lists = self.centroids.assign(vectors_NV)
        self._update(indices, lists, vectors_NV)
        moved = int((self._list_of[indices] != lists).sum())
        self._list_of[indices] = lists
        return moved

    def remove(self, indices: Indices) -> None:
        """Takes vectors out of their lists. Those that are in none are ignored."""
        indices = indices[indices < self._index.ntotal]
        indices = indices[self._list_of[indices] >= 0]
        if len(indices):
            zeros = np.zeros((len(indices), self.centroids.dim), np.float32)
            self._update(indices, np.full(len(indices), self.centroids.count, np.int64), zeros)
            self._list_of[indices] = -1

    def search(self, rows_NV: Vectors, query_V: Vectors, k: int, wanted: Bitmap, probes: int) -> Hits:
        """The k wanted vectors with the largest products in the ``probes`` nearest lists, best first, as
        (indices, products). ``rows_NV``: all vectors by number, as they were put."""
        return self.search_each(rows_NV, query_V[None], k, wanted, probes)[0]

    def search_each(
        self, rows_NV: Vectors, queries_QV: Vectors, k: int, wanted: Bitmap, probes: int
    ) -> list[Hits]:
        """``search`` of several queries, in one call of FAISS."""
        queries = np.ascontiguousarray(queries_QV, np.float32)
        most = min(wanted.count, int(self._index.ntotal))
        if not most or not len(queries):
            return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        lists = np.array([self.centroids.nearest(query, probes) for query in queries])
        selector = faiss.IDSelectorBitmap(wanted.bits)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=lists.shape[1])

        def fetch(number: slice, size: int) -> Indices:
            own, probed = queries[number], lists[number]
            products = np.empty((len(own), size), np.float32)
            hits = np.empty((len(own), size), np.int64)
            self._index.search_preassigned_c(
                len(own), faiss.swig_ptr(own), size, faiss.swig_ptr(probed),
                faiss.swig_ptr(np.zeros(probed.shape, np.float32)), faiss.swig_ptr(products),
                faiss.swig_ptr(hits), False, parameters,
            )  # fmt: skip
            return hits

        def every(number: int) -> Indices:
            probed = np.zeros(self.centroids.count + 1, np.bool_)
            probed[lists[number]] = True
            mask = wanted.mask()[: int(self._index.ntotal)]
            return np.flatnonzero(probed[self._list_of[: len(mask)]] & mask)

        numbers = range(len(queries))
        if self._largest_V.max() > _LARGEST:  # beyond float16
            return [best_of(every(n), rows_NV, queries[n], k) for n in numbers]
        hits = fetch(slice(None), first_size(k, most))

        def best(n: int) -> Hits:
            if not np.isfinite(queries[n]).all():
                return np.empty(0, np.int64), np.empty(0, np.float32)
            return exact_best(
                lambda size: fetch(slice(n, n + 1), size)[0], lambda: every(n), rows_NV, queries[n], k, most,
                self._errors_V, hits[n],
            )  # fmt: skip

        return [best(n) for n in numbers]

    def _note_sizes(self, vectors_NV: Vectors) -> None:
        """Notes how large numbers are, and with these the errors of products."""
        self._largest_V = largest_parts(vectors_NV, self._largest_V)
        self._errors_V = errors_of(self._largest_V)

    def _update(self, indices: Indices, lists: Indices, vectors_NV: Vectors) -> None:
        numbers = np.ascontiguousarray(indices, np.int64)
        with np.errstate(over="ignore"):
            codes = vectors_NV.astype(np.float16).view(np.uint8)
        self._index.direct_map.update_codes(
            self._index.invlists, len(numbers), faiss.swig_ptr(numbers), faiss.swig_ptr(lists),
            faiss.swig_ptr(codes),
        )  # fmt: skip

    def _add_up_to(self, count: int) -> None:
        """Adds zero vectors for new numbers up to ``count`` - 1, to the list that is never probed."""
        new = count - int(self._index.ntotal)
        if new <= 0:
            return
        zeros = np.zeros((new, self.centroids.dim), np.float32)
        lists = np.full(new, self.centroids.count, np.int64)
        self._index.add_core(new, faiss.swig_ptr(zeros), None, faiss.swig_ptr(lists))
        first = len(self._list_of)
        self._list_of = grown(self._list_of, count)
        self._list_of[first:] = -1
