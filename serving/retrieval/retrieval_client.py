"""Asks the shards of retrieval, all at once, and waits for no longer than an answer can.

A shard that doesn't answer in time leaves its items out of what is near; one that did so several times in a
row is left alone for a moment, so that not every request waits for it. What a request was too late for says
nothing of a shard, and what several miss at one moment may be this process's own: else one stall of the event
loop would have all shards left alone.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from serving.retrieval.retrieval_plan import Near, Plan, asks_of, near_of
from serving.retrieval.retrieval_shard import Told

LONGEST_S: Final = 0.1  # that an answer of a shard is waited for; it takes some milliseconds
FULL_S: Final = 0.05  # who answers nothing for so long failed; a shorter wait was the request's
LEAST_S: Final = 0.005  # with less left no shard is asked: no answer could come
WAIT_S: Final = 0.05  # that a shard waits for a version: it reads the log every 20 ms
FAILURES: Final = 3  # in a row, until ...
SHUN_S: Final = 0.5  # ... a shard is left alone for so long
APART_S: Final = 0.1  # failures nearer to each other count as one: requests are many at a time
Shard = Callable[[bytes], Awaitable[bytes]]
_log = logging.getLogger(__name__)


class Shards:
    """The shards, by number. Used in one event loop. ``failures``: times that one gave no answer, or wasn't
    asked as it was left alone."""

    def __init__(
        self, shards: Sequence[Shard], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._shards, self._now_s = list(shards), now_s
        self._in_a_row = [0] * len(shards)
        self._failed_at_s = [-math.inf] * len(shards)  # the last that counts in a row
        self._shunned_until_s = [0.0] * len(shards)
        self.failures = 0

    def __len__(self) -> int:
        return len(self._shards)

    async def search(self, plan: Plan, patience_s: float) -> Near:
        """What they found within ``patience_s``, ``LONGEST_S`` at most. Never raises for a shard."""
        if patience_s < LEAST_S:
            return near_of(plan, [None] * len(self))
        patience_s = min(patience_s, LONGEST_S)
        wait_ms = 1000 * min(WAIT_S, patience_s / 2)
        asks = asks_of(plan, len(self), wait_ms)
        now_s = self._now_s()
        tasks = {
            shard: asyncio.ensure_future(self._ask(shard, _encode(ask)))
            for shard, ask in enumerate(asks)
            if now_s >= self._shunned_until_s[shard]
        }
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=patience_s)
            full = patience_s >= FULL_S
            told = [self._told(shard, tasks.get(shard), full) for shard in range(len(self))]
        finally:  # also where the request is given up: nobody waits for them any more
            for task in tasks.values():
                task.cancel()
        return near_of(plan, told)

    async def _ask(self, shard: int, ask: bytes) -> Told:
        return _decode(await self._shards[shard](ask))

    def _told(self, shard: int, task: "asyncio.Future[Told] | None", full: bool) -> Told | None:
        """What a shard said in time. ``full``: whether it had the time that an answer may take."""
        if task is None:
            self.failures += 1
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
            why = "no answer in time" if full else ""
        self.failures += 1
        if why:
            self._failed(shard, why)
        return None

    def _failed(self, shard: int, why: str) -> None:
        now_s = self._now_s()
        if now_s - self._failed_at_s[shard] < APART_S:
            return
        self._failed_at_s[shard] = now_s
        self._in_a_row[shard] += 1
        if self._in_a_row[shard] >= FAILURES:
            if self._in_a_row[shard] == FAILURES:
                _log.warning("a shard of retrieval is away", extra={"shard": shard, "why": why})
            self._shunned_until_s[shard] = now_s + SHUN_S


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Told).decode
