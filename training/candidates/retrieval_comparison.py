"""Compares the retrieval of a candidate and of live: both models as of one step, on later engagements.

A comparison begins when live has written a snapshot: that and the candidate's current rows are kept until
there are enough engagements. So neither model has learned the examples it is tested on.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from parameter_server.storage.snapshot_rows import load_rows
from parameter_server.storage.snapshots import NoSnapshot, complete_steps
from parameter_server.table.table import initial_rows
from recsys.config.system_config import Config, ModelConfig, tables_of
from recsys.events.event_types import Item, decode
from recsys.events.hashing import key_of
from recsys.events.records import ITEMS
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet, RequestFeatures
from recsys.log.protocol import Log
from recsys.model.list_ranker import Lists, lists_of, rank_lists
from recsys.model.model import Model, build_model
from recsys.process.log_consumer import UNREADABLE
from training.candidates.retrieval_recall import Search, Weights, sorted_rows
from training.candidates.shadow import ScoredExample, Shadow
from training.continual.learner import Learner
from training.lines.line import MAIN

_RANKED: Final = 300  # candidates of the list whose ranking is timed
_REPEATS: Final = 20  # on busy cores the best of five was three times too slow
_TABLES: Final = ("items", "users")
Keys = NDArray[np.int64]
Floats = NDArray[np.float32]


class RetrievalResult(NamedTuple):
    """Result of a comparison. ``hits`` (E,): 1 for live, 2 for the candidate, 3 for both."""

    users_E: Keys
    hits_E: NDArray[np.uint8]
    figures: dict[str, float]


class CatalogueFollower:
    """Keeps a catalogue up to date from the log."""

    def __init__(self, log: Log, features: FeatureSet) -> None:
        self._log, self._offset = log, log.begin(ITEMS, 0)
        self.catalogue = Catalogue(features)

    def turn(self) -> None:
        while records := self._log.read(ITEMS, 0, self._offset):
            self._offset = records[-1].offset + 1
            for record in records:
                try:
                    event = decode(record.value)
                except UNREADABLE:
                    continue
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
        self._engaged: list[ScoredExample] = []

    def begin(self, shadow: Shadow, live_model: ModelConfig) -> None:
        """Keeps both models if live has a new snapshot; cheap otherwise. ``live_model``: may be of another
        size than the candidate's."""
        steps = complete_steps(self._folder, MAIN, shadow.epoch)
        if self._both is not None or not steps or (shadow.epoch, steps[-1]) == self._compared:
            return
        if shadow.step < steps[-1] or not self._features.history_length:
            return  # it still catches up; or no vectors are learned
        try:
            live = load_rows(self._folder, MAIN, shadow.epoch, steps[-1])
        except NoSnapshot:
            return
        self._compared = (shadow.epoch, steps[-1])
        if live.dense is None:
            return
        tables, dense = shadow.shard.tables, shadow.shard.dense
        assert dense is not None
        exports = {name: tables[name].export() for name in _TABLES}
        rows = {name: (export["keys"], export["values"]) for name, export in exports.items()}
        models = [build_model(self._features, model) for model in (live_model, shadow.model)]
        self._both = (
            Weights(sorted_rows(live.tables, self._initial), live.dense, models[0]),
            Weights(sorted_rows(rows, self._initial), dense.averaged.copy(), models[1]),
        )
        self._engaged = []
        self._sizes = {
            "live_bytes": float(sum(k.nbytes + v.nbytes for k, v in live.tables.values())),
            "bytes": float(sum(len(t) * (8 + 4 * t.config.dim) for t in tables.values())),
        }

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
        figures = {
            "picks": by_candidate.picks, "live_picks": by_live.picks,
            "pickers": float(len(engaged)),
        }  # fmt: skip
        return RetrievalResult(users, hits, figures | self._sizes)

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
                rank_lists(model, request, rows_UR)
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
