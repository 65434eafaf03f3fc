"""The index of a large catalogue: vectors in inverted lists, of which a search probes the nearest few.

Approximate, with measured recall (``serving/replica/index_maintenance.py``), which decides ``probes``, the
number of lists. With all of them a search is exact. The vectors are also stored by number, for ``similar``
and for filling another index.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown, written_bytes
from serving.index.exact_order import Hits, Indices, Vectors
from serving.index.inverted_lists import Centroids, InvertedLists
from serving.index.item_index import Mask

TARGET: Final = 0.97  # recall of the best 300, on average over the queries; 0.95 is promised
# A rough search probes 1/8 of the lists, and at least a few. Its recall of the 27 items nearest to an item is
# 0.89 for a million items, and 0.87 for 60,000 (half of the lists: 0.98, for four times the time).
_ROUGH: Final = 8
_LEAST: Final = 8


@dataclass
class RecallMeasurement:
    """Number of lists that must be probed to find each of the best items for some queries."""

    queries: Vectors
    ranks: list[Indices]
    recent: bool  # whether the queries come from requests

    @property
    def done(self) -> bool:
        return len(self.ranks) >= len(self.queries)

    @property
    def _all_ranks(self) -> Indices:
        return np.concatenate([np.empty(0, np.int64), *self.ranks])

    def probes(self, target: float = TARGET) -> int:
        """The fewest lists with a recall of ``target``."""
        ranks = np.sort(self._all_ranks)
        if not len(ranks):
            return 1
        return int(ranks[min(len(ranks) - 1, int(np.ceil(target * len(ranks))) - 1)]) + 1

    def recall(self, probes: int) -> float:
        """Share of the best items in so many lists."""
        ranks = self._all_ranks
        return float((ranks < probes).mean()) if len(ranks) else 1.0


class VectorArray:
    """Vectors (n, V) by number: an array that grows."""

    def __init__(self, dim: int, room: int = 8) -> None:
        self.room, self.count = np.zeros((max(room, 8), dim), np.float32), 0

    def reserve(self, more: int) -> None:
        self.room = grown(self.room, self.count + more)

    def set(self, indices: Indices, vectors: Vectors) -> None:
        """Sets vectors; numbers in between that were never set are zeros."""
        self.count = max(self.count, int(indices.max()) + 1)
        self.room = grown(self.room, self.count)
        self.room[indices] = vectors

    @property
    def rows(self) -> Vectors:
        return self.room[: self.count]

    @property
    def nbytes(self) -> int:
        return written_bytes(self.room, self.count)


class IvfIndex:
    """An ``ItemIndex`` over inverted lists. ``moved`` counts the vectors set since its creation, ``strayed``
    those that changed their list."""

    missing = False

    def __init__(
        self, centroids: Centroids, probes: int, room: int, by_number: VectorArray | None = None
    ) -> None:
        """``by_number``: the vectors of the index that this one will replace; both set the same."""
        self.dim, self.probes = centroids.dim, probes
        self.lists = InvertedLists(centroids)
        self.by_number = by_number or VectorArray(centroids.dim, room)
        self.moved = self.strayed = 0

    @property
    def name(self) -> str:
        return f"{self.lists.centroids.digest}-{self.probes}"

    @property
    def vectors(self) -> Vectors:
        return self.by_number.rows

    @property
    def nbytes(self) -> int:
        return self.by_number.nbytes + self.lists.nbytes

    def __len__(self) -> int:
        return len(self.by_number.rows)

    def saved(self) -> dict[str, NDArray[Any]]:
        """Arrays for ``restored``, with spare rows."""
        self.reserve(len(self) // 8)
        lists, vectors = self.lists.assigned, self.by_number.room[: len(self) * 9 // 8]
        numbers = {"centroids": self.lists.centroids.vectors, "probes": np.array(self.probes)}
        return numbers | {"lists": lists, "vectors": vectors}

    @classmethod
    def restored(cls, saved: Mapping[str, NDArray[Any]]) -> "IvfIndex":
        """The index that was saved. It changes the array of vectors."""
        index = cls(Centroids(saved["centroids"]), int(saved["probes"]), 0)
        index.by_number.room, index.by_number.count = saved["vectors"], len(saved["lists"])
        index.lists.restore(index.vectors, saved["lists"])
        return index

    def update(self, vectors_NV: Vectors, alive: Mask) -> None:
        """Sets the vectors that differ from those here, and those that are in no list."""
        lists, changed = self.lists.assigned, np.ones(len(vectors_NV), np.bool_)
        before, after = (v[: len(lists)].view(np.int32) for v in (self.vectors, vectors_NV))
        changed[: len(lists)] = (before != after).any(1) | (lists < 0)
        self.set(np.flatnonzero(changed), vectors_NV[changed], alive[changed])

    def empty(self) -> "IvfIndex":
        return IvfIndex(self.lists.centroids, self.probes, len(self))

    def reserve(self, more: int) -> None:
        """Copies arrays, which then replace the old ones: a search may use either."""
        self.by_number.reserve(more)

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        if not len(indices):
            return
        self.by_number.set(indices, vectors)
        self.moved += len(indices)
        if alive is not None and not alive.all():
            self.lists.remove(indices[~alive])
            indices, vectors = indices[alive], vectors[alive]
        self.strayed += self.lists.put(indices, vectors)

    def search(self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False) -> Hits:
        return self.probing(query_V, k, wanted, self.probes_for(rough))

    def search_each(self, queries_QV: Vectors, k: int, wanted: Bitmap, rough: bool = False) -> list[Hits]:
        k, probes = min(k, wanted.count), self.probes_for(rough)
        if k <= 0 or probes >= self.lists.centroids.count:
            return [self.probing(query_V, k, wanted, probes) for query_V in queries_QV]
        return [
            hits if len(hits[0]) == k else self.probing(query_V, k, wanted, 2 * probes)
            for query_V, hits in zip(
                queries_QV, self.lists.search_each(self.vectors, queries_QV, k, wanted, probes), strict=True
            )
        ]

    def probes_for(self, rough: bool) -> int:
        """Number of lists that a search probes."""
        exact = self.probes >= self.lists.centroids.count
        if exact or not rough:
            return self.probes
        return min(self.probes, max(_LEAST, -(-self.probes // _ROUGH)))

    def probing(self, query_V: Vectors, k: int, wanted: Bitmap, probes: int) -> Hits:
        """Searches so many lists, or as many as it takes to find k: filters may remove everything near."""
        k = min(k, wanted.count)
        if k <= 0 or not np.isfinite(query_V).all():
            return np.empty(0, np.int64), np.empty(0, np.float32)
        while True:
            indices, products = self.lists.search(self.vectors, query_V, k, wanted, probes)
            if len(indices) == k or probes >= self.lists.centroids.count:
                return indices, products
            probes *= 2

    def ranks(self, query_V: Vectors, k: int, wanted: Bitmap) -> Indices:
        """Ranks of the lists of the k best items, 0 for the nearest list: a search that probes more lists
        than an item's rank finds it. Costs a search of all lists."""
        every = self.lists.centroids.count
        indices, _ = self.probing(query_V, k, wanted, every)
        places = np.empty(every, np.int64)
        places[self.lists.centroids.nearest(query_V, every)] = np.arange(every)
        return places[self.lists.list_of(indices)]
