"""``recsys bench index``: the live index of a replica while its vectors move.

A replica holds ``--items`` items in lists. ``--seconds`` of updates are applied as fast as they go: each
second four steps that move 250 vectors each, two published items and one removed. Halfway, the lists are
rebuilt and swapped in. Recall is measured throughout against a search of all vectors, with the user sides of
that moment.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np

from benchmarks.index.index_figures import FOUND, MOVED, _ms, best, percentiles, recall, recalls
from benchmarks.index.synthetic_catalogue import Plan, plan
from parameter_server.publish.deltas import Changed, StepDelta
from recsys.arrays.bitmap import Bitmap
from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from serving.index.faiss_centroids import lists_for, sample_of, train
from serving.index.ivf_index import IvfIndex
from serving.replica.index_maintenance import IndexMaintenance
from serving.replica.replica import Replica

STEPS_PER_S: Final = 4
QUERIES: Final = 64
_SAMPLE: Final = 16  # queries of one sample of recall
_SAMPLES: Final = 30  # of recall while vectors move
_TURNS: Final = 12  # of the reading thread between two steps, 20 ms each at most


@dataclass
class Times:
    """Durations in seconds, and samples of recall."""

    searches: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)  # of a step's vectors
    published: list[float] = field(default_factory=list)
    removed: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)  # waits of requests while lists are rebuilt
    recalls: list[float] = field(default_factory=list)
    rebuild_s: float = 0.0


def measure_index(items: int, seconds: int, seed: int) -> dict[str, Any]:
    """Recall, latency and cost of changes, with the same moves for all indexes."""
    catalogue = plan(items, 32, seed)
    live = Live(catalogue, items)
    vectors = live.replica.index.vectors[:items].copy()
    liked = catalogue.liked(QUERIES)
    moves = Moves(catalogue, vectors, seconds * STEPS_PER_S)
    figures = live.run(moves, liked)
    return {
        "what": f"{items} vectors of 32 floats; {seconds} s of updates, {MOVED * STEPS_PER_S} a second",
        "figures": figures,
    }


class Moves:
    """Numbers and new values of the vectors that move in each step, the same for all indexes."""

    def __init__(self, catalogue: Plan, vectors: Any, steps: int) -> None:
        draw = np.random.default_rng(len(vectors))
        self.which = [draw.choice(len(vectors), MOVED, replace=False) for _ in range(steps)]
        now, self.to = vectors.copy(), []
        for chosen in self.which:
            now[chosen] = catalogue.moves(now[chosen])
            self.to.append(now[chosen].copy())
        self.final = now

    def __len__(self) -> int:
        return len(self.which)


class Live:
    """The replica and its index maintenance, driven as by the reading thread."""

    def __init__(self, catalogue: Plan, items: int) -> None:
        config = Config()
        serve = replace(config.serve, index="ivf")
        config = replace(config, serve=serve, model=replace(config.model, vector_dim=catalogue.dim))
        self.plan, self.items = catalogue, items
        self.replica = Replica(FeatureSet(FEED_SCHEMA), config)
        for start in range(0, items, 1_000):
            some = [catalogue.item(n) for n in range(start, min(items, start + 1_000))]
            self.replica.apply_items(some, start)
        self.keys = self.replica.catalogue.keys[:items, 0].copy()
        for start in range(0, items, 10_000):
            some_n = np.arange(start, min(items, start + 10_000))
            self._step(some_n, catalogue.rows(some_n))
        self.maintenance = IndexMaintenance(self.replica, train, sample_of, lists_for)
        began = time.perf_counter()
        index = self.maintenance.build_now()
        self.start_s = time.perf_counter() - began
        if index is not None:
            self.replica.swap(index)

    def _step(self, numbers: Any, rows: Any) -> None:
        changed = Changed(self.keys[numbers], rows, np.empty(0, np.int64))
        self.replica.apply_step(StepDelta(self.replica.step + 1, 0, {"items": changed}, None, {}))

    def run(self, moves: Moves, liked: list[Any]) -> dict[str, Any]:
        replica, times = self.replica, Times()
        sides = self.plan.user_sides(replica.index.vectors, liked)
        content = replica.index.vectors[: self.items] - replica.rows["items"].lookup(self.keys)
        every, middle = max(1, len(moves) // _SAMPLES), len(moves) // 2
        began = ended = 0.0
        for step in range(len(moves)):
            if step == middle:
                self.maintenance.requested, began = True, time.perf_counter()
            rows = moves.to[step] - content[moves.which[step]]
            _timed(times.updates, partial(self._step, moves.which[step], rows))
            self._items(step, times)
            query = sides[step % len(sides)]
            replica.queries.append(query)
            living = replica.catalogue.living
            _timed(times.searches, partial(replica.index.search, query, FOUND, living))
            if self._turns(times) and began:
                ended = ended or time.perf_counter()
            if step % every == 0 or (began and not ended):
                times.recalls.append(self._recall(sides, step))
                sides = self.plan.user_sides(replica.index.vectors, liked)
        while (
            self.maintenance.requested and self.maintenance.due
        ):  # a short run ends before the lists are ready
            self._turns(times)
            ended = time.perf_counter()
        times.recalls.append(self._recall(sides, 0))
        times.rebuild_s = ended - began
        return self._figures(times)

    def _items(self, step: int, times: Times) -> None:
        """Every few steps publishes an item, or removes one, and searches for it."""
        if step % 2:
            return
        number = self.items + step
        item = self.plan.item(step % self.items, number)
        _timed(times.published, lambda: self._seen(item, True))
        if step % 4 == 0:
            gone = item.__class__(time_ms=1, item_id=item.item_id, removed=True)
            _timed(times.removed, lambda: self._seen(gone, False))

    def _seen(self, item: Any, is_present: bool) -> None:
        """Applies an item and searches until it is present, or absent."""
        replica = self.replica
        replica.apply_items([item], replica.catalogue_offset + 1)
        number = replica.catalogue.ensure(item.item_id)
        alone = Bitmap(len(replica.catalogue))  # only this item is searched for
        alone.put(number, replica.catalogue.living[number])
        hits = replica.index.search(replica.index.vectors[number], 1, alone)[0]
        assert (number in hits) == is_present, (
            f"{item.item_id} {'is missing' if is_present else 'is still present'}"
        )

    def _turns(self, times: Times) -> bool:
        """Work of the reading thread between two steps; returns whether an index was swapped in."""
        swapped = False
        for _ in range(_TURNS):
            message = self.maintenance.turn()
            if message is not None:
                before = self.maintenance.replica.index
                _timed(times.pauses, partial(self.maintenance.apply, message))
                swapped = swapped or self.maintenance.replica.index is not before
        if self.replica.building is not None:
            times.pauses.append(times.updates[-1])
        return swapped

    def _recall(self, sides: Any, step: int) -> float:
        living = self.replica.catalogue.living
        some = sides[np.arange(step, step + _SAMPLE) % len(sides)]
        exact = best(self.replica.index.vectors, some, living.mask())
        hits = [self.replica.index.search(query, FOUND, living)[0] for query in some]
        return recall(hits, exact)

    def _figures(self, times: Times) -> dict[str, Any]:
        index = self.replica.index
        return {
            "index": index.name or "flat",
            "lists": index.lists.centroids.count if isinstance(index, IvfIndex) else 0,
            **recalls(times.recalls),
            **percentiles(times.searches),
            "us_per_update": round(float(np.median(times.updates)) / MOVED * 1e6, 2),
            "publish_p95_ms": _ms(times.published, 95),
            "delete_p95_ms": _ms(times.removed, 95),
            "start_s": round(self.start_s, 2),
            "rebuild_s": round(times.rebuild_s, 2),
            "longest_pause_ms": _ms(times.pauses, 100),
            "times_its_floats": round(
                getattr(index, "nbytes", index.vectors.nbytes) / index.vectors.nbytes, 2
            ),
        }


def _timed(times: list[float], work: Callable[[], object]) -> None:
    began = time.perf_counter()
    work()
    times.append(time.perf_counter() - began)
