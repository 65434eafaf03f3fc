"""Broadcasts one picture a second to all open pages; makes none while no page is open."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Final

MAX_PAGES: Final = 32
_LOG: Final = logging.getLogger(__name__)


class Full(RuntimeError):
    """The maximum number of pages is open."""


class Hub:
    """Broadcaster of one event loop. ``render`` runs in a thread, and is retried after errors."""

    def __init__(self, render: Callable[[], bytes], every_s: float = 1.0, max_pages: int = MAX_PAGES) -> None:
        self._render, self._every_s, self._max_pages = render, every_s, max_pages
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._latest, self._number = b"", 0
        self.pages = 0
        self.pictures = 0

    async def subscribe(self) -> AsyncGenerator[bytes]:
        """Yields every picture from now on; a slow consumer misses some. Raises Full."""
        if self.pages >= self._max_pages:
            most = self._max_pages
            raise Full(f"{self.pages} pages are open, expected at most {most}: close one")
        self.pages += 1
        try:
            if self._task is None:
                self._task = asyncio.create_task(self._run())
            seen = self._number
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._number > seen)  # noqa: B023
                    seen = self._number
                yield self._latest
        finally:
            self.pages -= 1
            if not self.pages and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        due_s = time.monotonic()
        with suppress(asyncio.CancelledError):
            while True:
                picture = await asyncio.to_thread(self._render_event)
                async with self._changed:
                    self._latest, self._number = picture, self._number + 1
                    self._changed.notify_all()
                due_s = max(due_s + self._every_s, time.monotonic())
                await asyncio.sleep(due_s - time.monotonic())

    def _render_event(self) -> bytes:
        try:
            data = self._render()
            self.pictures += 1
            return event("picture", data)
        except Exception as error:  # an unreachable log, a file that is being replaced
            _LOG.exception("no picture")
            return event("trouble", type(error).__name__.encode())


def event(name: str, data: bytes) -> bytes:
    """Encodes a server-sent event; ``data`` has no line breaks."""
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"
