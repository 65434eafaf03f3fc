"""One shard of retrieval at work: its state, the thread that follows the log for it, its answers; no Ray.

It follows the log as a replica does, by the same reader, and leaves out what it has no use for.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec

from recsys.config.system_config import Config
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Log
from serving.replica.log_follower import Follower
from serving.replica.state_reader import Batch, StateReader
from serving.retrieval.retrieval_shard import BEHIND, Ask, RetrievalShard, Told

STARTING: Final = "starting"


class ShardReader(StateReader):
    """Reads items and weights for a shard; counters, experiments and examples are none of its matter.
    ``applied`` is called after each batch."""

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
    """``start``, ``search`` and ``stop`` belong to one event loop."""

    def __init__(
        self, config: Config, log: Log, shard: int, shards: int,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        self.log = log
        self.shard = RetrievalShard(feature_set(config), config, shard, shards)
        self.reader = ShardReader(log, self.shard, config, now_ms, self._wake)
        self.follower = Follower(log, self.reader)
        self._waiting: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Begins to follow the log."""
        self.follower.start(asyncio.get_running_loop())

    async def caught_up(self, wait_s: float) -> None:
        """Returns once the shard has caught up with the log, or can't, or after ``wait_s``."""
        await self.follower.caught_up(wait_s)

    async def stop(self) -> None:
        await asyncio.to_thread(self.follower.stop)

    @property
    def failure(self) -> str:
        """Why the shard doesn't follow the log any more; empty where it does."""
        return self.follower.failure

    async def search(self, asked: bytes) -> bytes:
        """An ``Ask``, answered by a ``Told``. Waits for a version that is to come for as long as is asked."""
        ask = _decode(asked)
        if not self.reader.ready:
            return _encode(Told(refused=STARTING))
        until_s = time.monotonic() + ask.wait_ms / 1000
        while self.shard.refusal_of(ask) == BEHIND and not self.failure:  # then nothing comes
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                break
            more: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(more)
            try:
                await asyncio.wait({more}, timeout=left_s)
            finally:
                self._waiting.discard(more)
        return _encode(self.shard.search(ask))

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, set()
        for more in waiting:
            if not more.done():
                more.set_result(None)


_decode = msgspec.msgpack.Decoder(Ask).decode
_encode = msgspec.msgpack.Encoder().encode
