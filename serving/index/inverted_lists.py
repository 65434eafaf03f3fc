"""Inverted lists that change in place: each vector stands in the list of its nearest centroid.

A search looks through the lists whose centroids have the largest products with the query. What it finds is
a function of the centroids, the vectors and who is in it, to the last bit: products don't depend on where a
vector stands, and of equals the smaller number comes first. So how the lists came about needn't be known to
repeat it.
"""

from collections.abc import Callable
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from serving.index import list_kernels
from serving.index.list_kernels import LANES

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
_SPARE: Final = 1.25  # pages at first, of those that so many vectors and lists need at most


class Centroids:
    """The centroids (C, V) that say which list a vector belongs to. Nobody changes them."""

    def __init__(self, vectors_CV: Vectors) -> None:
        self.vectors = np.ascontiguousarray(vectors_CV, np.float32)
        self.count, self.dim = vectors_CV.shape
        pages = -(-self.count // LANES)
        filled = np.zeros((pages * LANES, self.dim), np.float32)
        filled[: self.count] = self.vectors
        shape = (pages, LANES, self.dim)
        self._pages = np.ascontiguousarray(filled.reshape(shape).transpose(0, 2, 1))
        # |v - c|² is smallest where v·c - |c|²/2 is largest. A place without a centroid is never the nearest.
        self._halves = np.full(pages * LANES, -np.inf, np.float32)
        self._halves[: self.count] = -0.5 * (self.vectors * self.vectors).sum(1)

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + self._pages.nbytes + self._halves.nbytes

    @cached_property
    def digest(self) -> str:
        shape = np.array(self.vectors.shape, np.int64)
        return sha256(shape.tobytes() + self.vectors.tobytes()).hexdigest()[:16]

    def assign(self, vectors_NV: Vectors) -> NDArray[np.int32]:
        """The list of each vector: that of the nearest centroid, of equals the first."""
        lists = np.empty(len(vectors_NV), np.int32)
        list_kernels.assign(self._pages, self._halves, vectors_NV, lists)
        return lists

    def nearest(self, query_V: Vectors, probes: int) -> Indices:
        """The lists with the largest products of centroid and query, best first, of equals the first."""
        query, places = np.ascontiguousarray(query_V[None, :], np.float32), len(self._halves)
        products = np.empty(places, np.float32)
        list_kernels.centroid_products(self._pages, query, products)
        products, lists = products[: self.count], np.arange(self.count)
        if probes < self.count:
            last = np.partition(products, self.count - probes)[self.count - probes]
            above, equal = np.flatnonzero(products > last), np.flatnonzero(products == last)
            lists = np.concatenate([above, equal[: probes - len(above)]])
        order: Indices = lists[np.lexsort((lists, -products[lists]))]
        return order


class InvertedLists:
    """Vectors by number, in lists. One thread changes them, while no other looks."""

    def __init__(self, centroids: Centroids, room: int) -> None:
        """``room``: how many vectors are expected; more may come. What isn't used takes no memory."""
        self.centroids = centroids
        pages = int(_SPARE * (room // LANES + centroids.count)) + 8
        self._codes = np.zeros((pages, centroids.dim, LANES), np.int8)
        self._scales = np.zeros((pages, LANES), np.float32)
        self._ids = np.zeros((pages, LANES), np.int32)
        self._chains = np.full((pages, 2), -1, np.int32)
        self._ends = np.full((centroids.count, 3), -1, np.int32)
        self._ends[:, 2] = 0
        self._where = np.full((max(room, 8), 2), -1, np.int32)
        self._spare = np.arange(pages - 1, -1, -1, dtype=np.int32)
        self._left = np.array([pages], np.int64)

    def __len__(self) -> int:
        return int(self.lengths.sum())

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Of each list."""
        return self._ends[:, 2]

    def list_of(self, indices: Indices) -> NDArray[np.int32]:
        """The list that each of some vectors stands in, -1 where it is in none."""
        out: NDArray[np.int32] = self._where[indices, 0]
        return out

    @property
    def nbytes(self) -> int:
        """What is in use, of memory that is reserved for more."""
        used, columns = len(self._codes) - int(self._left[0]), self._by_page()
        page = sum(column[:1].nbytes for column in columns.values()) + self._spare[:1].nbytes
        return used * page + self._where.nbytes + self._ends.nbytes + self.centroids.nbytes

    def put(self, indices: Indices, vectors_NV: Vectors) -> int:
        """Adds or moves vectors; returns how many changed their list, or had none."""
        if not len(indices):
            return 0
        vectors_NV = np.ascontiguousarray(vectors_NV)
        lists = self.centroids.assign(vectors_NV)
        self.reserve(int(indices.max()) + 1, len(indices))
        moved = int((self._where[indices, 0] != lists).sum())
        self._call(list_kernels.put, indices, lists, vectors_NV)
        return moved

    def take_out(self, indices: Indices) -> None:
        """Removes vectors; nothing happens to those that aren't there."""
        for index in indices.tolist():
            if index < len(self._where):
                self._call(list_kernels.take_out, index)

    def search(
        self, rows_NV: Vectors, query_V: Vectors, k: int, wanted: Bitmap, probes: int
    ) -> tuple[Indices, Vectors]:
        """The k wanted vectors with the largest product in the ``probes`` nearest lists, best first.
        ``rows_NV``: all vectors by number, as they were put."""
        query = np.ascontiguousarray(query_V, np.float32)
        lists = self.centroids.nearest(query, probes)
        best, indices = np.empty(k, np.float32), np.empty(k, np.int64)
        # A byte is off by half of the scale at most; the rest covers what float32 rounds in both sums.
        reach = np.float32(np.abs(query).sum() * (0.5 + 4e-5 * len(query)))
        found = list_kernels.scan(
            self._codes, self._scales, self._ids, self._chains, self._ends, lists,
            rows_NV, query, reach, wanted.bits, best, indices,
        )  # fmt: skip
        best, indices = best[:found], indices[:found]
        order = np.lexsort((indices, -best))
        return indices[order], best[order]

    def compact(self) -> None:
        """Puts what belongs to a list side by side, and lists in their order, as a search reads them: vectors
        that came in the order of their numbers lie scattered. Not while another thread searches."""
        columns = self._by_page()
        new = {name: np.zeros(its.shape, its.dtype) for name, its in columns.items()}
        compact: Callable[..., int] = list_kernels.compact
        used = compact(*columns.values(), self._ends, self._where, *new.values())
        for name, column in new.items():
            setattr(self, name, column)
        total = len(self._codes)
        self._left[0] = total - used
        self._spare[: total - used] = np.arange(total - 1, used - 1, -1)

    def reserve(self, numbers: int, more: int) -> None:
        """Makes room for numbers up to ``numbers`` - 1, and pages for so many more vectors in any lists."""
        pages = more // LANES + min(more, self.centroids.count)
        if numbers > len(self._where):
            room = max(numbers, 2 * len(self._where)) - len(self._where)
            self._where = np.concatenate([self._where, np.full((room, 2), -1, np.int32)])
        left, had = int(self._left[0]), len(self._codes)
        if pages > left:
            more_pages = max(pages, had // 2)
            for name, column in self._by_page().items():
                new = np.zeros((had + more_pages, *column.shape[1:]), column.dtype)
                new[:had] = column
                setattr(self, name, new)
            fresh = np.arange(had + more_pages - 1, had - 1, -1, dtype=np.int32)
            spare = np.zeros(had + more_pages, np.int32)
            spare[: left + more_pages] = np.concatenate([self._spare[:left], fresh])
            self._spare, self._left[0] = spare, left + more_pages

    def _by_page(self) -> dict[str, NDArray[np.int8] | NDArray[np.float32] | NDArray[np.int32]]:
        names = ("_codes", "_scales", "_ids", "_chains")
        return {name: getattr(self, name) for name in names}

    def _call(self, kernel: Callable[..., None], *given: Any) -> None:
        columns = self._by_page().values()
        kernel(*columns, self._ends, self._where, self._spare, self._left, *given)
