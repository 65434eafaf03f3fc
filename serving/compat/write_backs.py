"""Engagements that are to be written some time after an answer, as Gorse's ``write-back-delay`` asks for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from serving.ingestion.write_api import Unavailable

MOST: Final = 1_000  # that wait at a time
_log = logging.getLogger(__name__)

Write = Callable[[], Awaitable[None]]


class WriteBacks:
    """What waits, in one event loop and in memory: who is killed loses it, and ``close`` writes it early."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._closing = asyncio.Event()
        self._waiting: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def full(self) -> bool:
        return len(self._waiting) >= self._most

    def later(self, delay_s: float, write: Write, lost: Callable[[], None]) -> None:
        """Has ``write`` called after the delay, and ``lost`` where the log takes it not then."""
        task = asyncio.get_running_loop().create_task(self._wait(delay_s, write, lost))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def close(self) -> None:
        """Writes what waits, now."""
        self._closing.set()
        await asyncio.gather(*self._waiting)

    async def _wait(self, delay_s: float, write: Write, lost: Callable[[], None]) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), delay_s)
        except TimeoutError:
            pass  # its time has come
        try:
            await write()
        except Unavailable as error:
            lost()
            _log.warning("a write-back is lost", extra={"error": str(error)})
