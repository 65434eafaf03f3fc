"""Inverted lists that change in place: FAISS's, in half precision, each vector in the list of its nearest
centroid.

A search scans the lists whose centroids have the largest products with the query. Its result is a function of
the centroids, the vectors and the wanted items, to the last bit (serving/index/exact_order.py), so it can be
repeated without the history of the lists. Removed vectors stay in their list until the lists are rebuilt; a
search excludes them like any item that is not wanted.
"""

from functools import cached_property
from hashlib import sha256
from typing import Final

import faiss
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown
from serving.index.exact_order import FLOAT16, exact_best

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
_SPARE: Final = 64  # hits fetched beyond k: half precision seldom errs by more
_BATCH: Final = (
    16  # FAISS assigns fewer than 20 vectors without BLAS, whose rounding depends on the batch
)


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
        products, lists = self.vectors @ query_V, np.arange(self.count)
        if probes < self.count:
            last = np.partition(products, self.count - probes)[self.count - probes]
            above, equal = np.flatnonzero(products > last), np.flatnonzero(products == last)
            lists = np.concatenate([above, equal[: probes - len(above)]])
        order: Indices = lists[np.lexsort((lists, -products[lists]))]
        return order


class InvertedLists:
    """Vectors by number, in lists. One thread changes them, while no other searches."""

    def __init__(self, centroids: Centroids) -> None:
        self.centroids = centroids
        self._index = faiss.IndexIVFScalarQuantizer(
            centroids.quantizer, centroids.dim, centroids.count, faiss.ScalarQuantizer.QT_fp16,
            faiss.METRIC_INNER_PRODUCT, False,
        )  # fmt: skip
        self._index.is_trained = True  # half precision has no parameters
        self._index.set_direct_map_type(faiss.DirectMap.Array)
        self._list_of = np.full(8, -1, np.int32)

    def list_of(self, indices: Indices) -> NDArray[np.int32]:
        """List of each vector, -1 where it is in none."""
        out: NDArray[np.int32] = self._list_of[indices]
        return out

    @property
    def nbytes(self) -> int:
        entry: int = 2 * self.centroids.dim + 8 + 8 + 4  # vector, id, place, list
        return int(self._index.ntotal) * entry + self.centroids.nbytes

    def put(self, indices: Indices, vectors_NV: Vectors) -> int:
        """Adds or moves vectors of distinct numbers; returns how many changed their list, or had none."""
        if not len(indices):
            return 0
        vectors_NV = np.ascontiguousarray(vectors_NV, np.float32)
        self._add_up_to(int(indices.max()) + 1)
        lists = self.centroids.assign(vectors_NV)
        numbers = np.ascontiguousarray(indices, np.int64)
        with np.errstate(over="ignore"):
            codes = vectors_NV.astype(np.float16).view(np.uint8)
        self._index.direct_map.update_codes(
            self._index.invlists, len(numbers), faiss.swig_ptr(numbers), faiss.swig_ptr(lists),
            faiss.swig_ptr(codes),
        )  # fmt: skip
        moved = int((self._list_of[indices] != lists).sum())
        self._list_of[indices] = lists
        return moved

    def remove(self, indices: Indices) -> None:
        """Marks vectors as in no list; a search must not want them. Unknown numbers are ignored."""
        self._list_of[indices[indices < len(self._list_of)]] = -1

    def search(
        self, rows_NV: Vectors, query_V: Vectors, k: int, wanted: Bitmap, probes: int
    ) -> tuple[Indices, Vectors]:
        """The k wanted vectors with the largest products in the ``probes`` nearest lists, best first, as
        (indices, products). ``rows_NV``: all vectors by number, as they were put."""
        query = np.ascontiguousarray(query_V, np.float32)
        most = min(wanted.count, int(self._index.ntotal))
        if not most or not np.isfinite(query).all():
            return np.empty(0, np.int64), np.empty(0, np.float32)
        lists = self.centroids.nearest(query, probes)
        parameters = faiss.SearchParametersIVF(
            sel=faiss.IDSelectorBitmap(wanted.bits), nprobe=len(lists)
        )

        def fetch(size: int) -> Indices:
            distances, hits = np.empty(size, np.float32), np.empty(size, np.int64)
            self._index.search_preassigned_c(
                1, faiss.swig_ptr(query), size, faiss.swig_ptr(lists),
                faiss.swig_ptr(np.zeros(len(lists), np.float32)), faiss.swig_ptr(distances),
                faiss.swig_ptr(hits), False, parameters,
            )  # fmt: skip
            return hits[hits >= 0]

        return exact_best(fetch, rows_NV, query, k, most, FLOAT16, _SPARE)

    def _add_up_to(self, count: int) -> None:
        """Adds zero vectors for new numbers up to ``count`` - 1, in the first list, in none by
        ``list_of``."""
        new = count - int(self._index.ntotal)
        if new <= 0:
            return
        zeros, lists = np.zeros((new, self.centroids.dim), np.float32), np.zeros(new, np.int64)
        self._index.add_core(new, faiss.swig_ptr(zeros), None, faiss.swig_ptr(lists))
        first = len(self._list_of)
        self._list_of = grown(self._list_of, count)
        self._list_of[first:] = -1
