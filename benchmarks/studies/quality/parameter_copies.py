"""Copies of the ranker's parameters, all scored over one replay with one learner."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.deltas import StepDelta
from parameter_server.publish.rounding import round_dense, round_rows
from recsys.config.system_config import Config, tables_of
from recsys.features.feature_set import FeatureSet
from recsys.features.request_features import RequestFeatures
from replay.player import Player, ScoredImpression
from serving.replica.replica import published_model
from serving.replica.row_store import RowStore
from serving.scorers.probabilities import probabilities

_TOGETHER = 512  # requests scored together at the most; the scores don't depend on it


class Copy:
    """The ranker's parameters as one replica would have them, rounded as a publishing shard does, and their
    scores of the first label."""

    def __init__(self, features: FeatureSet, config: Config) -> None:
        self._model = published_model(features, config)
        (table,) = (t for t in tables_of(config.model) if t.name == "features")
        self.rows = RowStore(table, config.model.seed)
        self._published = config.parameter_server.delta_format
        self._waiting: list[RequestFeatures] = []
        self._scores: list[NDArray[np.float32]] = []

    def show(self, requests: Sequence[RequestFeatures]) -> None:
        """Adds requests to be scored with the copy's current parameters."""
        self._waiting.extend(requests)
        if len(self._waiting) >= _TOGETHER:
            self._score()

    def advance(self, deltas: Sequence[StepDelta], before_ms: int, now_ms: int) -> None:
        """Moves time from ``before_ms`` to ``now_ms``; ``deltas`` were learned in between."""
        if not deltas:
            return
        self._score()
        for delta in deltas:
            if "features" in delta.tables:
                changed = delta.tables["features"]
                self.rows.set(changed.keys, round_rows(changed.values, self._published).rows)
                self.rows.remove(changed.removed)
            if delta.dense is not None:
                self._model.write_dense(round_dense(delta.dense, self._published)[1])

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
    """Player whose copies do the scoring. Its own replica learns nothing; ``on_scored`` gets zeros.

    Building features is the expensive part of a replay, and on a log of the past they don't depend on
    weights: they are built once, and a copy's scores are those of its own replay, bit for bit.
    """

    copies: Sequence[Copy] = ()

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
