"""Copies of the ranker's parameters with different sync intervals, all scored over one replay.

Building features is the expensive part of a replay, and on a log of the past they don't depend on weights. So
one player builds them once, one learner learns once, and each copy scores the same requests with the
parameters that a replica with its sync interval would have. A copy's scores are those of its own replay, bit
for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import StepDelta
from parameter_server.publish.rounding import round_dense, round_rows
from recsys.config.system_config import Config, tables_of
from recsys.features.feature_set import FeatureSet, RequestFeatures
from replay.player import Player, ScoredImpression
from serving.ranking.scoring import probabilities
from serving.replica.replica import published_model
from serving.replica.row_store import RowStore

_TOGETHER = 512  # requests scored together at the most; the scores don't depend on it


@dataclass(frozen=True)
class Sync:
    """Sync schedule of a copy: at multiples of ``every_ms`` (0: at each step), without steps whose examples
    closed at ``frozen_after_ms`` or later."""

    name: str
    every_ms: int = 0
    frozen_after_ms: int | None = None


class Copy:
    """The ranker's parameters under one sync schedule, and their scores of the first label.

    ``rounded``: delta format to round received parameters to, as a publishing shard does; "": no rounding.
    """

    def __init__(
        self,
        features: FeatureSet,
        config: Config,
        sync: Sync,
        store: type[RowStore] = RowStore,
        rounded: str = "",
    ) -> None:
        self.sync = sync
        self._model = published_model(features, config)
        (table,) = (t for t in tables_of(config.model) if t.name == "features")
        self.rows = store(table, config.model.seed)
        self._rounded = rounded or "fp32"
        self._waiting: list[RequestFeatures] = []
        self._held: list[StepDelta] = []
        self._frozen = False
        self._scores: list[NDArray[np.float32]] = []

    def show(self, requests: Sequence[RequestFeatures]) -> None:
        """Adds requests to be scored with the copy's current parameters."""
        self._waiting.extend(requests)
        if len(self._waiting) >= _TOGETHER:
            self._score()

    def advance(self, deltas: Sequence[StepDelta], before_ms: int, now_ms: int) -> None:
        """Moves time from ``before_ms`` to ``now_ms``; ``deltas`` were learned in between."""
        for delta in deltas:
            until_ms = self.sync.frozen_after_ms
            self._frozen = self._frozen or (until_ms is not None and delta.time_ms >= until_ms)
            if not self._frozen:
                self._held.append(delta)
        every_ms = self.sync.every_ms
        if not self._held or (every_ms and before_ms // every_ms == now_ms // every_ms):
            return
        self._score()
        for delta in self._held:
            if "features" in delta.tables:
                changed = delta.tables["features"]
                rows = round_rows(changed.values, self._rounded).rows
                self.rows.set(changed.keys, rows)
                self.rows.remove(changed.removed)
            if delta.dense is not None:
                self._model.write_dense(round_dense(delta.dense, self._rounded)[1])
        self._held.clear()

    def scores(self) -> NDArray[np.float32]:
        """Scores (N,) of all requests so far, in order."""
        self._score()
        return np.concatenate(self._scores or [np.zeros(0, np.float32)])

    def _score(self) -> None:
        if self._waiting:
            scored_NL = probabilities(self._model, {"features": self.rows}, self._waiting)
            self._scores.append(scored_NL[:, 0].copy())
            self._waiting.clear()


@dataclass
class SideBySide(Player):
    """Player whose copies do the scoring. Its own replica learns nothing; ``on_scored`` gets zeros."""

    syncs: Sequence[Sync] = ()
    copies: list[Copy] = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.copies = self._make_copies()

    def _make_copies(self) -> list[Copy]:
        return [Copy(self.features, self.config, sync) for sync in self.syncs]

    def advance(self, now_ms: int) -> None:
        before_ms, self.now_ms = self.now_ms, max(self.now_ms, now_ms)
        deltas = self.loop.advance(now_ms)
        self.flush()
        for copy in self.copies:
            copy.advance(deltas, before_ms, now_ms)

    def flush(self) -> None:
        """Hands waiting requests to the copies, which score them before they change."""
        line, epoch, step = self.replica.version
        outputs = len(self.features.schema.labels) + 1
        for features, impression in self._waiting:
            nothing = np.zeros((len(features.items_NI), outputs), np.float32)
            self.on_scored(ScoredImpression(impression, nothing, line, epoch, step))
        requests = [features for features, _ in self._waiting]
        self._waiting.clear()
        for copy in self.copies:
            copy.show(requests)
