"""Caches the examples of a data set for an offline job; the server is replayed over it, as for `recsys
replay`."""

from pathlib import Path

from parameter_server.publish.deltas import StepDelta
from recsys.config.system_config import Config
from recsys.events.event_types import Event
from recsys.events.field_schema import Schema
from recsys.events.records import Example
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet
from replay.datasets.dataset import Dataset
from replay.direct_loop import Joiners
from replay.player import Player
from replay.replay_run import Progress, ReplayOptions, with_warm_up
from training.offline.cache import Cache, CacheWriter

_AT_ONCE = 1_024


class JoinLoop:
    """Loop behind the log without a trainer: events in, examples to a cache. It learns nothing."""

    def __init__(self, config: Config, schema: Schema, writer: CacheWriter) -> None:
        self.joiners, self._writer = Joiners(config.log.partitions, schema, config.join), writer
        self._waiting: list[Example] = []
        self._times: list[int] = []
        self._now_ms = 0

    def advance(self, now_ms: int) -> list[StepDelta]:
        """Returns no delta: nothing is learned."""
        return []

    def append(self, event: Event) -> None:
        """Feeds an event to the joiner of its partition."""
        for example in self.joiners.feed(event):
            if not isinstance(example, Example):
                continue  # what was learned before stays; with the user goes what is still open
            self._now_ms = max(self._now_ms, example.closed_ms)
            self._waiting.append(example)
            self._times.append(self._now_ms)
        if len(self._waiting) >= _AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes the buffered examples."""
        self._writer.add(self._waiting, self._times)
        self._waiting, self._times = [], []


class _Unscored(Player):
    """Player without scores: there is no model yet."""

    def flush(self) -> None:
        self._waiting.clear()


def cache_dataset(
    dataset: Dataset, folder: Path, features: FeatureSet, config: Config, from_ms: int | None,
    until_ms: int, progress: Progress,
) -> Cache:  # fmt: skip
    """Replays a data set until a time and caches its examples. ``config``: from ``replay_run.config_for``.

    Examples of impressions before ``from_ms`` are left out, but history from before the log warms sessions
    and counters up.
    """
    dense = FeatureBuilder(features).dense_width
    horizon_ms = int(config.join.horizon_s * 1000)
    writer = CacheWriter(folder, features, dense, horizon_ms, until_ms)
    loop = JoinLoop(config, features.schema, writer)
    player = _Unscored(features, config, loop)
    options = ReplayOptions(features.kind, from_ms=from_ms, until_ms=until_ms)
    for event in progress(with_warm_up(player, dataset, options)):
        player.play(event)
    player.flush()
    loop.flush()
    return writer.close(from_ms)
