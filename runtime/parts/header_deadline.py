"""uvicorn's HTTP protocol with a time-out for the header of a request.

uvicorn waits for a header without end: each half-sent one holds a connection. HAProxy limits that time, but
not every platform has HAProxy, and replicas' own ports can be reached on loopback.
"""

import asyncio
import os
from typing import Any

from uvicorn.protocols.http import httptools_impl

from runtime.supervision import launch_plan
from runtime.supervision.processes import STATE


class HeaderDeadline(httptools_impl.HttpToolsProtocol):
    """Closes a connection whose header isn't complete after ``header_s``."""

    header_s = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin()

    def on_message_begin(self) -> None:
        self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._end()
        self._deadline = self.loop.call_later(self.header_s, self.transport.close)

    def _end(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()


if STATE in os.environ:
    HeaderDeadline.header_s = launch_plan.read(os.environ[STATE])[0].doors.header_s
httptools_impl.HttpToolsProtocol = HeaderDeadline  # type: ignore[misc]
