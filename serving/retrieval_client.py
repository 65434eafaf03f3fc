"""Asks the shards of retrieval, all at once, and waits for no longer than an answer can.

A shard that doesn't answer in time leaves its items out of what is near; one that did so several times in a
row is left alone for a moment, so that not every request waits for it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from serving.near import Near, Plan, asks_of, near_of
from serving.retrieval_shard import Told

LONGEST_S: Final = 0.1  # that an answer of a shard is waited for; it takes some milliseconds
WAIT_S: Final = 0.05  # that a shard waits for a version: it reads the log every 20 ms
FAILURES: Final = 3  # in a row, until ...
SHUN_S: Final = 0.5  # ... a shard is left alone for so long
Shard = Callable[[bytes], Awaitable[bytes]]
_log = logging.getLogger(__name__)


class Shards:
    """The shards, by number. Used in one event loop. ``failures``: times that one gave no answer."""

    def __init__(
        self, shards: Sequence[Shard], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._shards, self._now_s = list(shards), now_s
        self._in_a_row = [0] * len(shards)
        self._shunned_until_s = [0.0] * len(shards)
        self.failures = 0

    def __len__(self) -> int:
        return len(self._shards)

    async def search(self, plan: Plan, patience_s: float) -> Near:
        """What they found within ``patience_s``, ``LONGEST_S`` at most. Never raises for a shard."""
        patience_s = min(max(patience_s, 0.0), LONGEST_S)
        wait_ms = 1000 * min(WAIT_S, patience_s / 2)
        asks = asks_of(plan, len(self), wait_ms)
        now_s = self._now_s()
        tasks = {
            shard: asyncio.ensure_future(self._ask(shard, _encode(ask)))
            for shard, ask in enumerate(asks)
            if now_s >= self._shunned_until_s[shard]
        }
        if tasks:
            await asyncio.wait(tasks.values(), timeout=patience_s)
        told = [self._told(shard, tasks.get(shard)) for shard in range(len(self))]
        return near_of(plan, told)

    async def _ask(self, shard: int, ask: bytes) -> Told:
        return _decode(await self._shards[shard](ask))

    def _told(self, shard: int, task: "asyncio.Future[Told] | None") -> Told | None:
        if task is None:
            return None
        if task.done() and not task.cancelled() and task.exception() is None:
            told = task.result()
            if not told.refused:
                self._in_a_row[shard] = 0
                return told
            why = told.refused  # it waited for the version, and would for the next request's too
        elif task.done() and not task.cancelled():
            why = repr(task.exception())
        else:
            why = "no answer in time"
            task.cancel()
        self.failures += 1
        self._in_a_row[shard] += 1
        if self._in_a_row[shard] >= FAILURES:
            if self._in_a_row[shard] == FAILURES:
                _log.warning("a shard of retrieval is away", extra={"shard": shard, "why": why})
            self._shunned_until_s[shard] = self._now_s() + SHUN_S
        return None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Told).decode
