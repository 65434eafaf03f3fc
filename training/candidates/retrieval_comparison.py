"""Compares the retrieval of a candidate and of live: both models as of one step, on later engagements.

A comparison keeps a snapshot of live and the candidate's rows until there are enough engagements. Each model
searches all living items exactly, for the session as it was served. The metric is recall@300; the share of
the most frequent picks shows whether a model gives everybody the same.
"""

# E engaged examples, N items, V vector

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.storage.snapshot_rows import ServingRows, map_rows
from parameter_server.storage.snapshots import NoSnapshot, complete_steps
from parameter_server.table.table import initial_rows
from recsys.config.system_config import Config, ModelConfig, tables_of
from recsys.events.event_types import Event, Item
from recsys.events.hashing import key_of
from recsys.events.records import ITEMS
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from recsys.log.protocol import Log
from recsys.model.batch import Batch
from recsys.model.list_ranker import Lists, list_logits, lists_of
from recsys.model.model import Lookup, Model, build_model, with_missing_row
from recsys.model.retrieval_vectors import content_vectors, field_vectors
from recsys.process.log_consumer import Consumer, decoded
from training.candidates.shadow import Shadow
from training.continual.learner import Learner
from training.lines.line import MAIN
from training.steps.step_reader import ServedExample

_RANKED: Final = 300  # candidates of the list whose ranking is timed
_COMPARE_EVERY: Final = 8  # steps between two checks for a snapshot of live
_REPEATS: Final = 20  # on busy cores the best of five was three times too slow
_TABLES: Final = ("items", "users")
BEST: Final = 300
PICKS: Final = 10
_MOST_ITEMS: Final = 100_000  # searched; of a larger catalogue those with the lowest hashes
_TOGETHER: Final = 64  # viewers
Keys = NDArray[np.int64]
Floats = NDArray[np.float32]
_Model = tuple[FeatureSet, ModelConfig]


class RetrievalResult(NamedTuple):
    """Result of a comparison. ``hits`` (E,): 1 for live, 2 for the candidate, 3 for both."""

    users_E: Keys
    hits_E: NDArray[np.uint8]
    figures: dict[str, float]


class CatalogueFollower:
    """Keeps a catalogue up to date from the log."""

    def __init__(self, log: Log, features: FeatureSet) -> None:
        self._consumer = Consumer(log, ITEMS, [0])
        self.catalogue = Catalogue(features)

    def turn(self) -> None:
        for _, event in decoded(self._consumer.drain(), Event):
            if isinstance(event, Item):
                self.catalogue.apply(event)


class RetrievalComparison:
    """Compares one candidate with live, once for each snapshot of live."""

    def __init__(self, features: FeatureSet, config: Config, items: CatalogueFollower) -> None:
        self._features, self._config, self._items = features, config, items
        self._folder = Path(config.state) / "snapshots"
        self._enough = config.promotion.recall_examples
        self._learner = Learner(build_model(features, config.model))
        self._compared = (-1, -1)  # epoch and step of the snapshot compared last
        self._both: tuple[Weights, Weights] | None = None
        self._sizes: dict[str, float] = {}
        self._engaged: list[ServedExample] = []

    def begin(self, shadow: Shadow, reads: FeatureSet, live_model: ModelConfig) -> None:
        """Keeps both models if live has a new snapshot. ``live_model`` may be of another size, and ``reads``
        other features."""
        steps = complete_steps(self._folder, MAIN, shadow.epoch)
        if self._both is not None or not steps or (shadow.epoch, steps[-1]) == self._compared:
            return
        if shadow.step < steps[-1] or not self._features.history_length:
            return  # it still catches up; or no vectors are learned
        try:
            live = map_rows(self._folder, MAIN, shadow.epoch, steps[-1])
        except NoSnapshot:
            return
        self._compared = (shadow.epoch, steps[-1])
        if live.dense is None:
            return
        tables, dense = shadow.shard.tables, shadow.shard.dense
        assert dense is not None
        exports = {name: tables[name].export() for name in _TABLES}
        rows = {name: (export["keys"], export["values"]) for name, export in exports.items()}
        models = [build_model(reads, live_model), build_model(self._features, shadow.model)]
        self._both = (
            Weights(partial(self._served, live), live.dense, models[0]),
            Weights(sorted_rows(rows, self._initial), dense.averaged.copy(), models[1]),
        )
        self._engaged = []
        self._sizes = {
            "live_bytes": float(
                sum(k.nbytes + v.nbytes for rows in live.tables.values() for k, v in rows.blocks())
            ),
            "bytes": float(sum(len(t) * (8 + 4 * t.config.dim) for t in tables.values())),
        }

    def _served(self, live: ServingRows, table: str, keys: Keys) -> Floats:
        rows, places = live.tables[table].lookup(keys)
        rows[places < 0] = self._initial(table, keys[places < 0])
        return rows

    def take(self, shown: Sequence[Any]) -> None:
        """Takes examples of later steps, before the candidate learns them."""
        if self._both is not None:
            self._engaged += [example for example in shown if example.labels[0] > 0]

    def end(self) -> RetrievalResult | None:
        """Returns the result once there are enough engagements."""
        if self._both is None or len(self._engaged) < self._enough:
            return None
        (live, candidate), engaged = self._both, self._engaged[: self._enough]
        self._both = None
        self._items.turn()
        lane = self._learner.prepare(engaged)
        dim, catalogue = self._config.model.vector_dim, self._items.catalogue
        search = Search(self._features, dim, catalogue, lane.batch, lane.lookup)
        by_live, by_candidate = search.run(live), search.run(candidate)
        users = np.array([key_of("user", e.user_id) for e in engaged], np.int64)[search.known_E]
        hits = by_live.hits_E.astype(np.uint8) | by_candidate.hits_E.astype(np.uint8) * np.uint8(2)
        figures = {"picks": by_candidate.picks, "live_picks": by_live.picks} | self._sizes
        return RetrievalResult(users, hits, figures | {"pickers": float(len(engaged))})

    def _initial(self, table: str, keys: Keys) -> Floats:
        (config,) = (t for t in tables_of(self._config.model) if t.name == table)
        return initial_rows(config, self._config.model.seed, keys)


def rank_times_us(models: Sequence[Model]) -> list[float]:
    """Microseconds that each model takes to rank a list of candidates, as a replica does; rows are zeros. The
    best of several rounds over all models, so that other load affects all alike."""
    lists = [_list_of(model) for model in models]
    best = [float("inf")] * len(models)
    for _ in range(_REPEATS):
        for n, (model, (request, rows_UR)) in enumerate(zip(models, lists, strict=True)):
            began = time.perf_counter()
            with torch.inference_mode():
                list_logits(model, request, rows_UR)
            best[n] = min(best[n], time.perf_counter() - began)
    return [1e6 * seconds for seconds in best]


def _list_of(model: Model) -> tuple[Lists, Floats]:
    features = model.features
    request = RequestFeatures(
        features.digest,
        np.arange(1, features.user_columns + 1, dtype=np.int64),
        np.arange(_RANKED * features.item_columns, dtype=np.int64).reshape(_RANKED, -1) + 1_000,
        np.zeros((features.history_length, features.history_keys), np.int64),
        np.zeros((features.history_length, features.outcomes), np.float32),
        np.zeros((_RANKED, model.ranker.shape.dense), np.float32),
    )
    lists = lists_of([request])
    return lists, np.zeros((len(lists.keys) + 1, model.config.dim + 1), np.float32)


@dataclass(frozen=True)
class Weights:
    """A model's rows, as a function of table and keys, and the flat dense parameters that are served."""

    rows: Callable[[str, Keys], Floats]
    dense: Floats
    model: Model


class SearchResult(NamedTuple):
    """Whether each engaged item was among the best (E,), and the share of the most frequent picks."""

    hits_E: NDArray[np.bool_]
    picks: float


def sorted_rows(
    tables: Mapping[str, tuple[Keys, Floats]], initial: Callable[[str, Keys], Floats]
) -> Callable[[str, Keys], Floats]:
    """Rows of a snapshot by key; ``initial`` gives those that it lacks."""
    ordered = {name: (order := np.argsort(keys), keys[order]) for name, (keys, _) in tables.items()}

    def rows(table: str, keys: Keys) -> Floats:
        order, own = ordered[table]
        out = initial(table, keys)
        if len(own):
            at = np.minimum(np.searchsorted(own, keys), len(own) - 1)
            has_row = own[at] == keys
            out[has_row] = tables[table][1][order[at[has_row]]]
        return out

    return rows


class Search:
    """An exact search. ``batch``: engaged examples, each with its item."""

    def __init__(
        self, features: FeatureSet, dim: int, catalogue: Catalogue, batch: Batch, lookup: Lookup
    ) -> None:
        """``dim``: of the vectors, the same for all models."""
        self._batch, self._lookup = batch, lookup
        alive = np.flatnonzero(catalogue.alive)
        if len(alive) > _MOST_ITEMS:  # keys are hashes: the lowest are a fair sample
            alive = alive[np.argsort(catalogue.keys[alive, 0])[:_MOST_ITEMS]]
        self._keys_N = catalogue.keys[alive, 0].copy()
        self._content_NV = _content(features, catalogue, alive, dim)
        self.known_E = np.zeros(len(batch), np.bool_)  # whether the item is searched
        self._item_E = np.zeros(len(batch), np.int64)
        if len(self._keys_N):
            order = np.argsort(self._keys_N)
            at = np.searchsorted(self._keys_N[order], batch.item_B)
            self._item_E = order[np.minimum(at, len(order) - 1)]
            self.known_E = self._keys_N[self._item_E] == batch.item_B

    def run(self, weights: Weights) -> SearchResult:
        """Searches with one model, for the examples whose items are known (``known_E``)."""
        items_NV = self._content_NV + weights.rows("items", self._keys_N)
        users_EV, count = self._users(weights), min(PICKS, len(items_NV))
        hits, picked = np.zeros(len(users_EV), np.bool_), np.zeros(len(items_NV), np.int64)
        for start in range(0, len(users_EV), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            scores = users_EV[part] @ items_NV.T
            own = np.take_along_axis(scores, self._item_E[part, None], 1)
            hits[part] = ((scores > own).sum(1) < BEST) & np.isfinite(scores).all(1)
            best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            picked += np.bincount(best.ravel(), minlength=len(items_NV))
        share = np.sort(picked)[-PICKS:].sum() / max(1, picked.sum())
        return SearchResult(hits[self.known_E], float(share))

    def _users(self, weights: Weights) -> Floats:
        weights.model.write_dense(weights.dense)
        keys = self._lookup.keys
        tables = ("users", "items")
        users, items = (with_missing_row(weights.rows(t, keys[t])) for t in tables)
        with torch.inference_mode():
            vectors = weights.model.user_vectors(self._batch, self._lookup, users, items)
            out: Floats = vectors.numpy()
        return out


def _content(features: FeatureSet, catalogue: Catalogue, indices: Keys, dim: int) -> Floats:
    columns: Sequence[Any] = features.group_columns()
    content = content_vectors(catalogue.keys[indices][:, columns], dim)
    if features.vector_fields:
        own = catalogue.numbers[indices][:, -features.vector_columns :]
        content = content + field_vectors(own, features.vector_fields, dim)
    return content


class RetrievalComparisons:
    """Comparisons of several lines with live, now and then."""

    def __init__(self, log: Log, config: Config, features: FeatureSet) -> None:
        self._log, self._config, self._features = log, config, features
        self._items: CatalogueFollower | None = None
        self._comparisons: dict[str, RetrievalComparison] = {}
        self._speeds: dict[tuple[_Model, _Model], dict[str, float]] = {}  # by both models

    def compare(self, shadow: Shadow, live: Callable[[], _Model]) -> RetrievalResult | None:
        """Takes a line's newest step; a result once a comparison is complete. ``live``: live's model."""
        comparison = self._comparisons.get(shadow.line)
        if comparison is None:
            if self._items is None:
                self._items = CatalogueFollower(self._log, self._features)
            comparison = RetrievalComparison(shadow.features, self._config, self._items)
            self._comparisons[shadow.line] = comparison
        comparison.take(shadow.shown)
        result = comparison.end()
        if shadow.step % _COMPARE_EVERY == 0:
            comparison.begin(shadow, *live())
        if result is None:
            return None
        return result._replace(figures=result.figures | self._speed(live(), (shadow.features, shadow.model)))

    def drop(self, line: str) -> None:
        """Ends the comparison of a line."""
        self._comparisons.pop(line, None)

    def _speed(self, live: _Model, candidate: _Model) -> dict[str, float]:
        """Microseconds to rank a list, of live and the candidate; measured once for each pair of models."""
        if (live, candidate) not in self._speeds:
            models = [build_model(*one) for one in dict.fromkeys((live, candidate))]
            times_us = rank_times_us(models)
            self._speeds[live, candidate] = {"live_rank_us": times_us[0], "rank_us": times_us[-1]}
        return self._speeds[live, candidate]
