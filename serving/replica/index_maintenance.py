"""Keeps the index fast and accurate while vectors move: measures recall, chooses the number of probed lists,
builds another index beside the one that answers, and decides when it replaces it.

``turn`` does a little between two batches, in the thread that reads the log; training, which takes seconds,
has a thread of its own. Meanwhile both indexes get changes. The answering index changes in ``apply`` alone.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Final

import numpy as np

from recsys.events.hashing import uniforms
from serving.index.exact_order import Indices, Vectors
from serving.index.inverted_lists import Centroids
from serving.index.item_index import ItemIndex
from serving.index.ivf_index import IvfIndex, RecallMeasurement
from serving.replica.item_vectors import ItemVectors

Train = Callable[[Vectors, int], Centroids]
HITS: Final = 300  # best items whose recall is measured
_QUERIES: Final = 32  # of one measurement
_SLICE: Final = 512  # vectors put into lists per turn: some milliseconds
_CHECK: Final = 50  # recall is measured again once a fiftieth of the vectors were set
_STRAYED: Final = 0.3  # rebuild once this share of the vectors has changed its list
_SLOWER: Final = 1.5  # rebuild once so many times the initial probes are needed
_AHEAD: Final = 2_000  # items of spare room, so that no request waits while arrays are copied
_LEAST: Final = 64  # fewer items need no lists
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SwapIndex:
    """A new index is ready to replace the answering one."""

    index: IvfIndex


@dataclass(frozen=True)
class SetProbes:
    """The index should probe so many lists from now on."""

    index: IvfIndex
    probes: int


class IndexMaintenance:
    """Maintains one replica's index. ``recall``: the last measurement; ``builds``: indexes built;
    ``requested``: build another one though none is due."""

    def __init__(
        self, replica: ItemVectors, train: Train, sample_of: Callable[[Indices, int], Indices],
        lists_for: Callable[[int], int],
    ) -> None:  # fmt: skip
        self.replica, self._train, self._sample, self._lists = replica, train, sample_of, lists_for
        self.recall, self.builds = 1.0, 0
        self.requested = False
        self._training: Future[Centroids] | None = None
        self._untrainable: ItemIndex | None = None  # the index for which training failed
        self._seen: IvfIndex | None = None  # the index that ``_checked`` and ``_initial`` describe
        self._building: IvfIndex | None = None
        self._filled = self._total = 0  # of the items at the start of the build
        self._measured: RecallMeasurement | None = None
        self._checked = 0  # vectors set at the last measurement
        self._recent = False
        self._initial: tuple[int, int, int] = (0, 0, 0)  # probes, strays and items of the new index

    # --- in the reading thread ---

    def turn(self) -> SwapIndex | SetProbes | None:
        """Does a little of the work; returns a change for ``apply``."""
        for index in (self.replica.index, self.replica.building):
            if index is not None:
                index.reserve(_AHEAD)
        if self._building is not None and self.replica.building is not self._building:
            self._building, self._measured = None, None  # a snapshot replaced its source
        if self._building is not None:
            return self._fill(self._building)
        if self._training is not None:
            if self._training.done():
                self._begin(self._training)
            return None
        if self.due:
            self._start_training()
            return None
        answering = self.replica.index
        return self._adjust(answering) if isinstance(answering, IvfIndex) else None

    def build_now(self) -> IvfIndex | None:
        """Builds an index at once, if one is due: for a replica that doesn't answer yet."""
        if not self.due:
            return None
        if self._training is None:
            self._start_training()
        assert self._training is not None
        self._begin(self._training)
        while self._building is not None:
            change = self.turn()
            if isinstance(change, SwapIndex):
                return change.index
        return None

    @property
    def due(self) -> bool:
        """Whether another index should be built."""
        serve, items = self.replica.config.serve, self.replica.catalogue.living.count
        index = self.replica.index
        if serve.index == "flat" or items < _LEAST or index is self._untrainable:
            return False
        if not self.replica.indexed:  # shards maintain their own
            return False
        if not isinstance(index, IvfIndex):
            return self.requested or serve.index == "ivf" or items > serve.index_flat_items
        self._observe(index)
        probes, strays, at_first = self._initial
        strayed = index.strayed - strays
        slower = index.probes > _SLOWER * probes and strayed > items // 10
        return self.requested or slower or items > 2 * at_first or strayed > _STRAYED * items

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
        """Starts to fill the lists. Where training failed, the index stays, and answers."""
        self._training = None
        try:
            centroids = training.result()
        except Exception:
            _log.exception("building an index failed")
            self._untrainable = self.replica.index
            return
        old, total = self.replica.index, len(self.replica.catalogue)
        by_number = old.by_number if isinstance(old, IvfIndex) else None
        self._building = IvfIndex(centroids, centroids.count, total + total // 8, by_number)
        self._filled, self._total, self._measured = 0, total, None
        self.replica.building = self._building

    def _fill(self, index: IvfIndex) -> SwapIndex | None:
        if self._filled < self._total:
            stop = min(self._total, self._filled + _SLICE)
            indices = np.arange(self._filled, stop)
            alive = self.replica.catalogue.alive[indices]
            index.set(indices, self.replica.index.vectors[indices], alive)
            self._filled = stop
            return None
        measured = self._measure(index)
        if measured is None:
            return None
        index.probes = measured.probes()
        self._note(index, measured)
        self._seen = None
        self._observe(index)
        self._checked = index.moved
        self._building, self.builds, self.requested = None, self.builds + 1, False
        return SwapIndex(index)

    def _observe(self, index: IvfIndex) -> None:
        """Starts to count the changes of an index that is new or came with a snapshot."""
        if index is not self._seen:
            items = self.replica.catalogue.living.count
            self._seen, self._checked, self._measured = index, 0, None
            self._initial = (index.probes, index.strayed, items)

    def _adjust(self, index: IvfIndex) -> SetProbes | None:
        enough = index.moved - self._checked > len(index) // _CHECK
        better = not self._recent and len(self.replica.queries) >= _QUERIES
        if self._measured is None and not enough and not better:
            return None
        measured = self._measure(index)
        if measured is None:
            return None
        self._note(index, measured)
        probes = measured.probes()
        return None if probes == index.probes else SetProbes(index, probes)

    def _note(self, index: IvfIndex, measured: RecallMeasurement) -> None:
        self.recall = measured.recall(index.probes)
        self._checked, self._recent, self._measured = index.moved, measured.recent, None

    def _measure(self, index: IvfIndex) -> RecallMeasurement | None:
        """Measures one more query; returns the measurement once it is complete."""
        if self._measured is None:
            recent = list(self.replica.queries)[-_QUERIES:]
            few = len(recent) < _QUERIES
            queries = self._synthetic_queries(index) if few else np.array(recent, np.float32)
            self._measured = RecallMeasurement(queries, [], not few)
        measured = self._measured
        if not measured.done:
            query = measured.queries[len(measured.ranks)]
            measured.ranks.append(index.ranks(query, HITS, self.replica.catalogue.living))
        return measured if measured.done else None

    def _synthetic_queries(self, index: IvfIndex) -> Vectors:
        """Vectors of items, each perturbed a little, where there were too few requests."""
        members = np.flatnonzero(self.replica.catalogue.alive)
        vectors = index.vectors[members[np.arange(_QUERIES) * len(members) // _QUERIES]]
        noise = (uniforms(len(index), np.arange(len(vectors)), index.dim) - 0.5).astype(np.float32)
        sizes = np.linalg.norm(vectors, axis=1, keepdims=True) / np.sqrt(index.dim / 12)
        return np.asarray(vectors + 0.5 * sizes * noise, np.float32)

    # --- between two requests ---

    def apply(self, change: SwapIndex | SetProbes) -> None:
        if isinstance(change, SwapIndex):
            if self.replica.building is change.index:
                self.replica.swap(change.index)
        elif self.replica.index is change.index:
            change.index.probes = change.probes
