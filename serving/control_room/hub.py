"""Whoever looks is told the same picture: one is made a second, and none while nobody looks."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

MOST: Final = 32  # pages at once
_LOG: Final = logging.getLogger(__name__)


class Full(RuntimeError):
    """So many look already."""


class Hub:
    """Belongs to one event loop. ``paint`` runs in a thread; its errors are told, and it is tried again."""

    def __init__(self, paint: Callable[[], bytes], every_s: float = 1.0, most: int = MOST) -> None:
        self._paint, self._every_s, self._most = paint, every_s, most
        self._news = asyncio.Condition()
        self._painting: asyncio.Task[None] | None = None
        self._latest, self._number, self._closed = b"", 0, False
        self.pages = 0
        self.pictures = 0

    async def watch(self) -> AsyncGenerator[bytes]:
        """Every picture from now on; one who is slow misses some. Raises Full."""
        if self.pages >= self._most:
            raise Full(f"{self.pages} pages look already, and there are {self._most} at most")
        self.pages += 1
        try:
            if self._painting is None:
                self._painting = asyncio.create_task(self._paint_on())
            seen = self._number
            while not self._closed:
                async with self._news:
                    await self._news.wait_for(lambda: self._closed or self._number > seen)  # noqa: B023
                    seen = self._number
                if not self._closed:
                    yield self._latest
        finally:
            self.pages -= 1
            if not self.pages and self._painting is not None:
                self._painting.cancel()
                self._painting = None

    async def close(self) -> None:
        """Everybody's stream ends."""
        self._closed = True
        async with self._news:
            self._news.notify_all()

    async def _paint_on(self) -> None:
        due_s = time.monotonic()
        with suppress(asyncio.CancelledError):
            while True:
                await self._tell(await asyncio.to_thread(self._painted))
                due_s = max(due_s + self._every_s, time.monotonic())
                await asyncio.sleep(due_s - time.monotonic())

    async def _tell(self, picture: bytes) -> None:
        async with self._news:
            self._latest, self._number = picture, self._number + 1
            self._news.notify_all()

    def _painted(self) -> bytes:
        try:
            painted = self._paint()
            self.pictures += 1
            return event("picture", painted)
        except Exception as error:  # a log that is away, a file that is being replaced
            _LOG.exception("no picture")
            return event("trouble", type(error).__name__.encode())


def event(name: str, data: bytes) -> bytes:
    """One server-sent event; ``data`` has no line breaks."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
