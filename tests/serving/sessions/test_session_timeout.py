"""A hanging store costs a request little; a busy event loop is no hanging store."""

import asyncio
import time
from typing import Any

import pytest

from benchmarks.harness.memory_sessions import MemorySessions
from serving.sessions.session_store import StoreUnavailable
from serving.sessions.session_timeout import BREAKER_OPEN_S, TimedSessionReader


class Store(MemorySessions):
    """Answers after a while, never, or with an error."""

    def __init__(self) -> None:
        super().__init__()
        self.delay_s, self.broken, self.asked = 0.0, False, 0
        self.blobs["u"] = b"session"

    async def get(self, user_id: Any) -> bytes | None:
        self.asked += 1
        if self.broken:
            raise StoreUnavailable("refused")
        await asyncio.sleep(self.delay_s)
        return self.blobs.get(str(user_id))


async def fails(reader: TimedSessionReader) -> float:
    """Reads, expects no answer, and says how long that took in seconds."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await reader.get("u")
    return time.monotonic() - began


async def test_an_answer_is_passed_on() -> None:
    reader = TimedSessionReader(Store())
    assert await reader.get("u") == b"session"
    assert await reader.get("nobody") is None


async def test_a_hanging_store_costs_a_slice_and_is_then_left_alone() -> None:
    store = Store()
    store.delay_s = 60.0
    reader = TimedSessionReader(store)
    for _ in range(3):
        assert await fails(reader) < 0.3
    assert await fails(reader) < 0.01 and store.asked == 3
    store.delay_s = 0.0
    await asyncio.sleep(BREAKER_OPEN_S)
    assert await reader.get("u") == b"session"


async def test_a_broken_store_is_told_at_once() -> None:
    store = Store()
    store.broken = True
    assert await fails(TimedSessionReader(store)) < 0.02


async def test_a_burst_in_a_busy_loop_loses_no_session() -> None:
    reader = TimedSessionReader(Store())

    async def request() -> bytes | None:
        blob = await reader.get("u")
        time.sleep(0.004)  # ranking, which holds the loop
        return blob

    assert set(await asyncio.gather(*[request() for _ in range(60)])) == {b"session"}


async def test_a_store_that_hangs_in_a_busy_loop_is_still_noticed() -> None:
    store = Store()
    store.delay_s = 60.0
    reader = TimedSessionReader(store)

    async def request() -> None:
        with pytest.raises(StoreUnavailable):
            await reader.get("u")
        time.sleep(0.004)

    await asyncio.gather(*[request() for _ in range(60)])


async def test_who_has_time_waits_for_a_slow_store_longer_than_a_request_does() -> None:
    store = Store()
    store.delay_s = 0.2
    reader = TimedSessionReader(store)
    assert await reader.get("u", 1.0) == b"session"
    await fails(reader)
