"""Asks all retrieval shards at once, and waits no longer than a request can.

Items of a shard that doesn't answer in time are missing from the results. A circuit breaker leaves one that
failed several times in a row alone for a moment. A timeout shorter than ``MIN_FAILURE_WAIT_S`` says nothing
about a shard, and failures at one moment count once: a stall of this loop must not open all breakers.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from serving.query import ShardResults, VectorVersion
from serving.retrieval.retrieval_plan import RetrievalPlan
from serving.retrieval.retrieval_shard import ShardRequest, ShardResponse

CONNECT_S: Final = 5.0  # longest wait for the first call of all shards
LONGEST_S: Final = 0.1  # longest wait for a shard's answer; it takes some milliseconds
MIN_FAILURE_WAIT_S: Final = 0.05  # after a shorter wait the shard isn't to blame
LEAST_S: Final = 0.005  # with less left no shard is asked: no answer could come
WAIT_S: Final = 0.05  # longest wait of a shard for a version: it reads the log every 20 ms
FAILURES: Final = 3  # in a row, until a shard's breaker opens ...
BREAKER_OPEN_S: Final = 0.5  # ... for so long
FAILURE_SPACING_S: Final = 0.1  # closer ones count as one: requests are many at a time
_NO_VERSION: Final = VectorVersion("", 0, 0, 0)
ShardCall = Callable[[bytes], Awaitable[bytes]]
_log = logging.getLogger(__name__)


class RetrievalClient:
    """The retrieval shards, by number. Used in one event loop. ``failures`` counts calls without an answer,
    and calls that an open breaker left out."""

    def __init__(self, shards: Sequence[ShardCall], now_s: Callable[[], float] = time.monotonic) -> None:
        self._shards, self._now_s = list(shards), now_s
        self._in_a_row = [0] * len(shards)
        self._failed_at_s = [-math.inf] * len(shards)  # the last failure that counts in a row
        self._open_until_s = [0.0] * len(shards)
        self.failures = 0

    def __len__(self) -> int:
        return len(self._shards)

    async def connect(self) -> None:
        """Calls each shard once, without a query: the first call of a deployment takes longer than a request
        may wait. Called before the first request; a shard without an answer is left to the requests."""
        calls = [
            self._call(shard, ShardRequest(_NO_VERSION, b"", [], shard=shard, shards=len(self)))
            for shard in range(len(self))
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                await asyncio.gather(*calls, return_exceptions=True)

    async def search(self, plan: RetrievalPlan, timeout_s: float) -> ShardResults:
        """Results within ``timeout_s``, ``LONGEST_S`` at most. Never raises for a shard."""
        if timeout_s < LEAST_S:
            return plan.merge([None] * len(self))
        timeout_s = min(timeout_s, LONGEST_S)
        requests = plan.requests(len(self), 1000 * min(WAIT_S, timeout_s / 2))
        now_s = self._now_s()
        tasks = {
            shard: asyncio.ensure_future(self._call(shard, request))
            for shard, request in enumerate(requests)
            if now_s >= self._open_until_s[shard]
        }
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=timeout_s)
            full = timeout_s >= MIN_FAILURE_WAIT_S
            responses = [self._response(s, tasks.get(s), full) for s in range(len(self))]
        finally:  # also where the request is cancelled: nobody waits for them any more
            for task in tasks.values():
                task.cancel()
        return plan.merge(responses)

    async def _call(self, shard: int, request: ShardRequest) -> ShardResponse:
        return _decode(await self._shards[shard](_encode(request)))

    def _response(
        self, shard: int, task: "asyncio.Future[ShardResponse] | None", full: bool
    ) -> ShardResponse | None:
        """A shard's response in time; counts failures. ``full``: whether it had the time that it may take."""
        reason = ""
        if task is not None and task.done() and not task.cancelled():
            error = task.exception()
            # A shard that refuses has waited for the version, and would for the next request's too.
            reason = repr(error) if error else task.result().refused
            if not reason:
                self._in_a_row[shard] = 0
                return task.result()
        elif task is not None and full:
            reason = "no answer in time"
        self.failures += 1
        if reason:
            self._count_failure(shard, reason)
        return None

    def _count_failure(self, shard: int, reason: str) -> None:
        now_s = self._now_s()
        if now_s - self._failed_at_s[shard] < FAILURE_SPACING_S:
            return
        self._failed_at_s[shard] = now_s
        self._in_a_row[shard] += 1
        if self._in_a_row[shard] >= FAILURES:
            if self._in_a_row[shard] == FAILURES:
                extra = {"shard": shard, "why": reason}
                _log.warning("retrieval shard does not answer", extra=extra)
            self._open_until_s[shard] = now_s + BREAKER_OPEN_S


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ShardResponse).decode
