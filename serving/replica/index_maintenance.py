"""What keeps the index fast and right while vectors move: measures recall, chooses how many lists are looked
through, has another index made beside the one that answers, and says when it is to take its place.

``turn`` does a little at a time, in the thread that reads the log, between two batches: so steps and items
go on being applied meanwhile, to both indexes, and the swap is one assignment. Only training takes seconds;
it works on a copy, in a thread of its own. What is answered from changes in ``apply`` alone. One turn is
longer: in the last of the filling the lists are compacted, 0.15 s for 300,000 items.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Final

import numpy as np

from recsys.events.hashing import uniforms
from serving.index.inverted_lists import Centroids, Indices, Vectors
from serving.index.item_index import ItemIndex
from serving.index.ivf_index import IvfIndex, Measured
from serving.replica.item_vectors import ItemVectors

Train = Callable[[Vectors, int], Centroids]
FOUND: Final = 300
_QUERIES: Final = 32  # in one measurement
_SLICE: Final = 512  # vectors put into lists in one turn: some milliseconds
_CHECK: Final = 50  # measured again once a fiftieth of the vectors were set
_STRAYED: Final = 0.3  # of the vectors in another list than at first: made anew
_SLOWER: Final = 1.5  # times as many lists as at first are needed: made anew
_AHEAD: Final = (
    2_000  # items that there is room for, so that no request waits while arrays are copied
)
_LEAST: Final = 64  # items: fewer need no lists
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swap:
    """Another index is ready to take the place of the one that answers."""

    index: IvfIndex


@dataclass(frozen=True)
class Probe:
    """So many lists are to be looked through from now on."""

    index: IvfIndex
    probes: int


class IndexCare:
    """Looks after one replica's index. ``recall``: as measured last; ``builds``: indexes made."""

    def __init__(
        self, replica: ItemVectors, train: Train, sample_of: Callable[[Indices, int], Indices],
        lists_for: Callable[[int], int],
    ) -> None:  # fmt: skip
        self.replica, self._train, self._sample, self._lists = replica, train, sample_of, lists_for
        self.recall, self.builds = 1.0, 0
        self.asked = False  # whether another is to be made though none is due
        self._training: Future[Centroids] | None = None
        self._useless: ItemIndex | None = None  # the index beside which none could be made
        self._seen: IvfIndex | None = None  # the index that ``_checked`` and ``_first`` are about
        self._building: IvfIndex | None = None
        self._filled = self._total = 0  # of the items that there were when it was begun
        self._measured: Measured | None = None
        self._checked = 0  # vectors set when it was measured last
        self._recent = False
        self._first: tuple[int, int, int] = (0, 0, 0)  # probes, strays and items when it was made

    # --- in the reading thread ---

    def turn(self) -> Swap | Probe | None:
        """A little of what is to be done; what it comes to."""
        for its in (self.replica.index, self.replica.building):
            if its is not None:
                its.reserve(_AHEAD)
        if self._building is not None and self.replica.building is not self._building:
            self._building, self._measured = None, None  # a snapshot replaced what it was made from
        if self._building is not None:
            return self._fill(self._building)
        if self._training is not None:
            if self._training.done():
                self._begin(self._training)
            return None
        if self.due:
            self._start_training()
            return None
        index = self.replica.index
        return self._look_after(index) if isinstance(index, IvfIndex) else None

    def whole(self) -> IvfIndex | None:
        """All of it at once, if there is anything to do: for a replica that answers nobody yet."""
        if not self.due:
            return None
        if self._training is None:
            self._start_training()
        assert self._training is not None
        self._begin(self._training)
        while self._building is not None:
            found = self.turn()
            if isinstance(found, Swap):
                return found.index
        return None

    @property
    def due(self) -> bool:
        """Whether another index should be made."""
        serve, items = self.replica.config.serve, self.replica.catalogue.living.count
        index = self.replica.index
        if serve.index == "flat" or items < _LEAST or index is self._useless:
            return False
        if not self.replica.indexed:  # shards look after theirs
            return False
        if not isinstance(index, IvfIndex):
            return self.asked or serve.index == "ivf" or items > serve.index_flat_items
        self._meet(index)
        probes, strays, at_first = self._first
        slower = index.probes > _SLOWER * probes and index.strayed - strays > items // 10
        return (
            self.asked
            or slower
            or items > 2 * at_first
            or index.strayed - strays > _STRAYED * items
        )

    def _start_training(self) -> None:
        members = np.flatnonzero(self.replica.catalogue.alive)
        lists = self._lists(len(members))
        sample = self.replica.index.vectors[self._sample(members, lists)]
        future: Future[Centroids] = Future()

        def train() -> None:
            try:
                future.set_result(self._train(sample, lists))
            except BaseException as error:
                future.set_exception(error)

        Thread(target=train, name="centroids", daemon=True).start()
        self._training = future

    def _begin(self, training: "Future[Centroids]") -> None:
        """Starts to fill the lists. Where training failed, the index stays as it is, and answers."""
        self._training = None
        try:
            centroids = training.result()
        except Exception:
            _log.exception("no other index could be made")
            self._useless = self.replica.index
            return
        before, total = self.replica.index, len(self.replica.catalogue)
        numbered = before.numbered if isinstance(before, IvfIndex) else None
        self._building = IvfIndex(centroids, centroids.count, total + total // 8, numbered)
        self._filled, self._total, self._measured = 0, total, None
        self.replica.building = self._building

    def _fill(self, index: IvfIndex) -> Swap | None:
        if self._filled < self._total:
            stop = min(self._total, self._filled + _SLICE)
            its = np.arange(self._filled, stop)
            alive = self.replica.catalogue.alive[its]
            index.set(its, self.replica.index.vectors[its], alive)
            self._filled = stop
            if stop == self._total:
                index.compact()
            return None
        measured = self._measure(index)
        if measured is None:
            return None
        index.probes = measured.probes()
        self._note(index, measured)
        self._seen = None
        self._meet(index)
        self._checked = index.moved
        self._building, self.builds, self.asked = None, self.builds + 1, False
        return Swap(index)

    def _meet(self, index: IvfIndex) -> None:
        """An index that is new, or came with a snapshot: what changes is counted from here."""
        if index is not self._seen:
            items = self.replica.catalogue.living.count
            self._seen, self._checked, self._measured = index, 0, None
            self._first = (index.probes, index.strayed, items)

    def _look_after(self, index: IvfIndex) -> Probe | None:
        enough = index.moved - self._checked > len(index) // _CHECK
        better = not self._recent and len(self.replica.queries) >= _QUERIES
        if self._measured is None and not enough and not better:
            return None
        measured = self._measure(index)
        if measured is None:
            return None
        self._note(index, measured)
        probes = measured.probes()
        return None if probes == index.probes else Probe(index, probes)

    def _note(self, index: IvfIndex, measured: Measured) -> None:
        self.recall = measured.recall(index.probes)
        self._checked, self._recent, self._measured = index.moved, measured.recent, None

    def _measure(self, index: IvfIndex) -> Measured | None:
        """Measures one query more; all that were measured, once there are enough."""
        if self._measured is None:
            recent = list(self.replica.queries)[-_QUERIES:]
            few = len(recent) < _QUERIES
            queries = self._made_up(index) if few else np.array(recent, np.float32)
            self._measured = Measured(queries, [], not few)
        measured = self._measured
        if not measured.done:
            query = measured.queries[len(measured.ranks)]
            measured.ranks.append(index.ranks(query, FOUND, self.replica.catalogue.living))
        return measured if measured.done else None

    def _made_up(self, index: IvfIndex) -> Vectors:
        """Queries where there were too few: vectors of items, each turned a little."""
        members = np.flatnonzero(self.replica.catalogue.alive)
        vectors = index.vectors[members[np.arange(_QUERIES) * len(members) // _QUERIES]]
        turns = (uniforms(len(index), np.arange(len(vectors)), index.dim) - 0.5).astype(np.float32)
        sizes = np.linalg.norm(vectors, axis=1, keepdims=True) / np.sqrt(index.dim / 12)
        return np.asarray(vectors + 0.5 * sizes * turns, np.float32)

    # --- between two requests ---

    def apply(self, found: Swap | Probe) -> None:
        """Changes what is answered from."""
        if isinstance(found, Swap):
            if self.replica.building is found.index:
                self.replica.swap(found.index)
        elif self.replica.index is found.index:
            found.index.probes = found.probes
