"""One retrieval shard at work: its state, the thread that follows the log for it, its responses; no Ray.

It has a replica's followers but those of counters and of progress.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from recsys.clock import timer_of
from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from serving.followers.control import ControlFollower
from serving.followers.follower import Follower
from serving.followers.follower_thread import FollowerThread
from serving.followers.followers import Followers
from serving.followers.index import IndexFollower
from serving.followers.items import ItemsFollower
from serving.followers.weights import WeightsFollower
from serving.retrieval.retrieval_shard import BEHIND, RetrievalShard, ShardRequest, ShardResponse

STARTING: Final = "starting"


class RetrievalService:
    """Answers the requests of one shard. ``start``, ``search`` and ``stop`` belong to one event loop."""

    def __init__(self, config: Config, log: Log, shard: int, shards: int, now_ms: Callable[[], int]) -> None:
        self.log = log
        features, timer_ms = feature_set(config), timer_of(now_ms)
        self.shard = RetrievalShard(features, config, shard, shards)
        control, items = ControlFollower(log, config, features.schema), ItemsFollower(log, self.shard)
        weights = WeightsFollower(
            log, self.shard, control.lifecycle, lambda: control.live, features, timer_ms
        )
        index = IndexFollower(self.shard)
        every: list[Follower[Any]] = [control, items, weights, index]
        self.followers = Followers(log, every, items, weights, index, timer_ms, applied=self._wake)
        self.thread = FollowerThread(log, self.followers)
        self._waiting: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        self.thread.start(asyncio.get_running_loop())

    async def stop(self) -> None:
        await asyncio.to_thread(self.thread.stop)

    async def search(self, encoded: bytes) -> bytes:
        """Answers a ``ShardRequest`` with a ``ShardResponse``. Waits up to ``wait_ms`` for its version."""
        request = _decode(encoded)
        if not self.followers.ready:
            return _encode(ShardResponse(refused=STARTING))
        until_s = time.monotonic() + request.wait_ms / 1000
        # After a failure of the thread no newer version comes.
        while self.shard.refusal_of(request) == BEHIND and not self.thread.failure:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                break
            applied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(applied)
            try:
                await asyncio.wait({applied}, timeout=left_s)
            finally:
                self._waiting.discard(applied)
        return _encode(self.shard.search(request))

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for applied in waiting:
            if not applied.done():
                applied.set_result(None)


_decode = msgspec.msgpack.Decoder(ShardRequest).decode
_encode = msgspec.msgpack.Encoder().encode
