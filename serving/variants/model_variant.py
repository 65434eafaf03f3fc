"""Model variant: the replica of one model line, live or beside it, and everything that keeps it current."""

from collections.abc import Callable
from typing import Any

from recsys.app.set_loops import SetsInUse
from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from serving.followers.control import ControlFollower
from serving.followers.counters import CountersFollower
from serving.followers.folds import FoldsFollower
from serving.followers.follower import Follower
from serving.followers.follower_thread import FollowerThread
from serving.followers.followers import Followers
from serving.followers.index import IndexFollower
from serving.followers.items import ItemsFollower
from serving.followers.progress import ProgressFollower
from serving.followers.weights import WeightsFollower
from serving.pipeline import Pipeline
from serving.replica.catalogue_snapshot import CatalogueSnapshot
from serving.replica.replica import Replica
from serving.tracing.swipe_traces import SwipeTraces


class ModelVariant:
    """Answers with one model. The live variant follows ``control``: the live line, policies and keys. Another
    has a line of its own, and the live one's ``control``."""

    def __init__(
        self, config: Config, log: Log, features: FeatureSet, now_ms: Callable[[], int],
        first: FeatureSet | None = None, shards: int = 0, traces: SwipeTraces | None = None,
        line: str = "", control: ControlFollower | None = None,
    ) -> None:  # fmt: skip
        """``features``: as logged. ``first``: the set of the state folder's file, if that is another.
        ``shards``: as in ``Replica``. ``traces``: for applied steps. ``line``, ``control``: of a variant
        beside the live one. Raises ValueError where the configuration names what the schema lacks."""
        self.line, first, self.timer_ms = line, first or features, timer_of(now_ms)
        self.replica = replica = Replica(features, config, shards)
        self.pipeline = Pipeline(replica)
        self.control = live = control or ControlFollower(log, config, features.schema)
        items = ItemsFollower(log, replica)
        weights = WeightsFollower(
            log, replica, live.lifecycle, lambda: (line, 0) if line else live.live, first, self.timer_ms,
            traces.now_ns if traces else lambda: 0,
        )  # fmt: skip
        counters = CountersFollower(log, replica, items, SetsInUse(first).name(features))
        self.progress = ProgressFollower(log, replica, weights, live.lifecycle, self.timer_ms, traces)
        index, self.folds = IndexFollower(replica), FoldsFollower(log, replica, self.timer_ms)
        every: list[Follower[Any]] = [live, items, counters, weights, self.progress, self.folds, index]
        self.followers = Followers(
            log, every[1:] if control else every, items, weights, index,
            self.timer_ms, CatalogueSnapshot(config.state, log.id, replica, writes=not line),
        )  # fmt: skip
        self.thread = FollowerThread(log, self.followers)

    @property
    def stale(self) -> bool:
        """Whether examples have waited for a step for ``serve.stale_s``."""
        return self.progress.stale(self.timer_ms())

    @property
    def servable(self) -> bool:
        """Whether it may answer now: it has caught up and has weights, and its line doesn't lag behind."""
        healthy = self.followers.ready and not self.thread.failure
        return healthy and self.replica.step > 0 and not self.stale
