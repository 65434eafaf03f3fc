"""One retrieval shard at work: its state, the thread that follows the log for it, its responses; no Ray.

It follows the log with the replica's reader, without the topics that it doesn't need.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from serving.replica.log_follower import LogFollower
from serving.replica.state_reader import Batch, StateReader
from serving.retrieval.retrieval_shard import BEHIND, RetrievalShard, ShardRequest, ShardResponse

STARTING: Final = "starting"


class ShardReader(StateReader):
    """Reads items and weights, no counters or examples. Calls ``applied`` after each batch."""

    def __init__(
        self, log: Log, shard: RetrievalShard, config: Config, now_ms: Callable[[], int],
        applied: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        super().__init__(log, shard, config, now_ms)
        self._applied = applied

    def _read_states(self, batch: Batch, limit: int) -> None:
        pass

    def _read_progress(self, batch: Batch) -> None:
        pass

    def apply(self, batch: Batch) -> None:
        super().apply(batch)
        self._applied()


class RetrievalService:
    """Answers the requests of one shard. ``start``, ``search`` and ``stop`` belong to one event loop."""

    def __init__(self, config: Config, log: Log, shard: int, shards: int, now_ms: Callable[[], int]) -> None:
        self.log = log
        self.shard = RetrievalShard(feature_set(config), config, shard, shards)
        self.reader = ShardReader(log, self.shard, config, now_ms, self._wake)
        self.follower = LogFollower(log, self.reader)
        self._waiting: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        self.follower.start(asyncio.get_running_loop())

    async def stop(self) -> None:
        await asyncio.to_thread(self.follower.stop)

    async def search(self, encoded: bytes) -> bytes:
        """Answers a ``ShardRequest`` with a ``ShardResponse``. Waits up to ``wait_ms`` for its version."""
        request = _decode(encoded)
        if not self.reader.ready:
            return _encode(ShardResponse(refused=STARTING))
        until_s = time.monotonic() + request.wait_ms / 1000
        # After a failure of the follower no newer version comes.
        while self.shard.refusal_of(request) == BEHIND and not self.follower.failure:
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
