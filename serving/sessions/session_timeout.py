"""Reads sessions in the time that a request has for it: a store that hangs costs 50 ms, a busy loop nothing.

The wait is cut into slices. A slice in which nobody is answered means that the store hangs: the wait ends;
where others were answered meanwhile, or the loop itself came late, the store is well and the wait goes on.
"""

import asyncio
import time
from typing import Final

from recsys.events.hashing import Id
from serving.sessions.session_store import SessionReader, StoreUnavailable

SLICE_S: Final = 0.05
LONGEST_S: Final = 1.0
SHUN_S: Final = 0.5  # how long a store that failed is left alone
FAILURES: Final = 3  # in a row, until then


class PatientReader:
    """A ``SessionReader`` that answers soon or raises StoreUnavailable. Used in one event loop."""

    def __init__(self, sessions: SessionReader) -> None:
        self.sessions = sessions
        self.failures = 0
        self._answers = 0
        self._in_a_row = 0
        self._shun_until = 0.0

    async def get(self, user_id: Id, patience_s: float = SLICE_S) -> bytes | None:
        """As ``SessionReader``'s. ``patience_s``: how long a store that answers nobody is waited for, at most
        ``LONGEST_S``; a request for a list has no more than a slice, a look at a session has time."""
        if time.monotonic() < self._shun_until:
            self.failures += 1
            raise StoreUnavailable("the session store failed a moment ago")
        task = asyncio.ensure_future(self.sessions.get(user_id))
        await self._wait(task, patience_s)
        if task.done() and task.exception() is None:
            self._answers += 1
            self._in_a_row = 0
            return task.result()
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
        self.failures += 1
        self._in_a_row += 1
        if self._in_a_row >= FAILURES:
            self._shun_until = time.monotonic() + SHUN_S
        raise StoreUnavailable("the session store didn't answer in time")

    async def close(self) -> None:
        await self.sessions.close()

    async def _wait(self, task: "asyncio.Future[bytes | None]", slice_s: float) -> None:
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            began, answers = time.monotonic(), self._answers
            await asyncio.wait({task}, timeout=slice_s)
            if task.done():
                return
            late = time.monotonic() - began > 1.25 * slice_s
            if not late and self._answers == answers:
                break
        for _ in range(4):  # the answer may have arrived, and only waits for its turn
            await asyncio.sleep(0)
