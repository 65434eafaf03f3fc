"""The index of a large catalogue: vectors in inverted lists, of which a search looks through the nearest few.

Approximate, and measured (``serving/replica/index_maintenance.py``): how many lists that are is ``probes``. With all of them
a search is exact. Beside the lists the vectors stand once more by number, where ``similar`` looks them up and
another index is filled from.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown, written_bytes
from serving.index.inverted_lists import Centroids, Indices, InvertedLists, Vectors
from serving.index.item_index import Mask

TARGET: Final = 0.97  # of the best 300, on average over the queries; what is promised is 0.95
# A rough search looks through one list of so many, and a few at least. That holds 0.89 of the best 27 near an
# item of a million, and 0.87 of 60,000 (half of the lists: 0.98, for four times the time).
_ROUGH: Final = 8
_LEAST: Final = 8


@dataclass
class Measured:
    """How many lists must be looked through to find each of the best of some queries."""

    queries: Vectors
    ranks: list[Indices]
    recent: bool  # whether they are of requests

    @property
    def done(self) -> bool:
        return len(self.ranks) >= len(self.queries)

    def probes(self, target: float = TARGET) -> int:
        """The fewest lists with which ``target`` of them are found."""
        ranks = np.sort(np.concatenate(self.ranks)) if self.ranks else np.empty(0, np.int64)
        if not len(ranks):
            return 1
        return int(ranks[min(len(ranks) - 1, int(np.ceil(target * len(ranks))) - 1)]) + 1

    def recall(self, probes: int) -> float:
        """The share of them that so many lists hold."""
        ranks = np.concatenate(self.ranks) if self.ranks else np.empty(0, np.int64)
        return float((ranks < probes).mean()) if len(ranks) else 1.0


class Numbered:
    """Vectors (n, V) by number: an array that grows."""

    def __init__(self, dim: int, room: int = 8) -> None:
        self._rows, self._count = np.zeros((max(room, 8), dim), np.float32), 0

    def reserve(self, more: int) -> None:
        self._rows = grown(self._rows, self._count + more)

    def set(self, indices: Indices, vectors: Vectors) -> None:
        """Zeros stand where nothing was set."""
        self._count = max(self._count, int(indices.max()) + 1)
        self._rows = grown(self._rows, self._count)
        self._rows[indices] = vectors

    @property
    def rows(self) -> Vectors:
        return self._rows[: self._count]

    @property
    def nbytes(self) -> int:
        return written_bytes(self._rows, self._count)


class IvfIndex:
    """An ``ItemIndex`` over inverted lists. ``moved`` counts the vectors that were set since it was made, and
    ``strayed`` those that changed their list."""

    missing = False

    def __init__(
        self, centroids: Centroids, probes: int, room: int, numbered: Numbered | None = None
    ) -> None:
        """``numbered``: of an index whose place this one takes, and which sets the same."""
        self.dim, self.probes = centroids.dim, probes
        self.lists = InvertedLists(centroids, room)
        self.numbered = numbered or Numbered(centroids.dim, room)
        self.moved = self.strayed = 0

    @property
    def name(self) -> str:
        return f"{self.lists.centroids.digest}-{self.probes}"

    @property
    def vectors(self) -> Vectors:
        return self.numbered.rows

    @property
    def nbytes(self) -> int:
        return self.numbered.nbytes + self.lists.nbytes

    def __len__(self) -> int:
        return len(self.numbered.rows)

    def empty(self) -> "IvfIndex":
        return IvfIndex(self.lists.centroids, self.probes, len(self))

    def reserve(self, more: int) -> None:
        """By arrays that are copied and then take the place of the old: either will do for a search."""
        self.numbered.reserve(more)
        self.lists.reserve(len(self) + more, more)

    def set(self, indices: Indices, vectors: Vectors, alive: Mask | None = None) -> None:
        if not len(indices):
            return
        self.numbered.set(indices, vectors)
        self.moved += len(indices)
        if alive is not None and not alive.all():
            self.lists.take_out(indices[~alive])
            indices, vectors = indices[alive], vectors[alive]
        self.strayed += self.lists.put(indices, vectors)

    def compact(self) -> None:
        self.lists.compact()

    def search(
        self, query_V: Vectors, k: int, wanted: Bitmap, rough: bool = False
    ) -> tuple[Indices, Vectors]:
        return self.probing(query_V, k, wanted, self.probes_for(rough))

    def probes_for(self, rough: bool) -> int:
        """How many lists are looked through."""
        exact = self.probes >= self.lists.centroids.count
        if exact or not rough:
            return self.probes
        return min(self.probes, max(_LEAST, -(-self.probes // _ROUGH)))

    def probing(
        self, query_V: Vectors, k: int, wanted: Bitmap, probes: int
    ) -> tuple[Indices, Vectors]:
        """A search through so many lists, or as many more as it takes to find k: a filter may have taken
        all that is near."""
        k = min(k, wanted.count)
        if k <= 0:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        while True:
            found = self.lists.search(self.vectors, query_V, k, wanted, probes)
            if len(found[0]) == k or probes >= self.lists.centroids.count:
                return found
            probes *= 2

    def ranks(self, query_V: Vectors, k: int, wanted: Bitmap) -> Indices:
        """How near the lists of the k best are, 0 for the nearest: a search through more than so many
        lists finds that one. Costs a search through all of them."""
        every = self.lists.centroids.count
        found, _ = self.probing(query_V, k, wanted, every)
        places = np.empty(every, np.int64)
        places[self.lists.centroids.nearest(query_V, every)] = np.arange(every)
        return places[self.lists.list_of(found)]
