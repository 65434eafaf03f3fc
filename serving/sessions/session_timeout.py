"""Bounds the wait for a session: a hanging store costs 50 ms, a busy event loop loses no session.

The wait is cut into slices. It ends after a slice in which the store answered no request, unless the loop
itself ran late. After some failures in a row nothing is read for a moment: a circuit breaker.
"""

import asyncio
import time
from contextlib import suppress
from typing import Final

from recsys.events.hashing import Id
from serving.sessions.session_store import SessionReader, StoreUnavailable

SLICE_S: Final = 0.05
MAX_WAIT_S: Final = 1.0
BREAKER_OPEN_S: Final = 0.5  # without reads, after the store failed
FAILURES: Final = 3  # in a row, until it opens


class TimedSessionReader:
    """SessionReader that answers soon or raises StoreUnavailable; belongs to one event loop."""

    def __init__(self, sessions: SessionReader) -> None:
        self.sessions = sessions
        self._answers = 0
        self._failures_in_a_row = 0
        self._open_until_s = 0.0

    async def get(self, user_id: Id, slice_s: float = SLICE_S) -> bytes | None:
        """As ``SessionReader.get``. ``slice_s``: wait for a store that answers no request, at most
        ``MAX_WAIT_S``. A request for a list waits one short slice; a lookup of a session has time."""
        if time.monotonic() < self._open_until_s:
            raise StoreUnavailable("the session store failed a moment ago")
        read = asyncio.ensure_future(self.sessions.get(user_id))
        await self._wait(read, slice_s)
        if read.done() and read.exception() is None:
            self._answers += 1
            self._failures_in_a_row = 0
            return read.result()
        read.add_done_callback(lambda late: late.cancelled() or late.exception())
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= FAILURES:
            self._open_until_s = time.monotonic() + BREAKER_OPEN_S
        raise StoreUnavailable("the session store didn't answer in time")

    async def folded_to(self, partitions: int) -> list[int] | None:
        """Offsets of ``events`` up to which the sessions are folded; None while the store doesn't answer."""
        with suppress(StoreUnavailable, TimeoutError):
            position = await asyncio.wait_for(self.sessions.folded_to(partitions), MAX_WAIT_S)
            return [0] * partitions if position is None else position.events
        return None

    async def close(self) -> None:
        await self.sessions.close()

    async def _wait(self, read: "asyncio.Future[bytes | None]", slice_s: float) -> None:
        deadline_s = time.monotonic() + MAX_WAIT_S
        while time.monotonic() < deadline_s:
            began_s, answers = time.monotonic(), self._answers
            await asyncio.wait({read}, timeout=slice_s)
            if read.done():
                return
            late = time.monotonic() - began_s > 1.25 * slice_s
            if not late and self._answers == answers:
                break
        for _ in range(4):  # the answer may have arrived and only waits for its turn
            await asyncio.sleep(0)
