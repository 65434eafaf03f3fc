"""Receives a request's body whole before the request is admitted, so that a slow upload holds no place."""

import asyncio
from collections import Counter
from typing import Final

from starlette.types import Message, Receive, Scope

MAX_BODY_BYTES: Final = 1_000_000
MAX_VALUES: Final = 40_000  # of JSON in a body: decoding and checking them holds up other requests
ROOM_BYTES: Final = 64 << 20  # of bodies that a replica is receiving
_SHARE: Final = 4  # of the room, for one source


class BodyRefused(Exception):
    """A body that isn't received: HTTP status, and the reason."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class BodyRoom:
    """Bytes of unfinished bodies: of all at most ``most``, of one source at most a quarter of that. Pure."""

    def __init__(self, most: int = ROOM_BYTES) -> None:
        self._most, self.used = most, 0
        self._by_source = Counter[str]()

    def take(self, source: str, size: int) -> bool:
        """Takes room for bytes of a source; returns whether there was enough."""
        mine = self._by_source[source] + size
        if self.used + size > self._most or mine * _SHARE > self._most:
            return False
        self.used, self._by_source[source] = self.used + size, mine
        return True

    def give_back(self, source: str, size: int) -> None:
        self.used -= size
        self._by_source[source] -= size
        if not self._by_source[source]:
            del self._by_source[source]


class BodyReceiver:
    """Receives bodies, each within ``timeout_s``."""

    def __init__(self, room: BodyRoom, timeout_s: float) -> None:
        self._room, self._timeout_s = room, timeout_s

    async def whole(self, scope: Scope, receive: Receive, source: str) -> Receive:
        """Returns a ``receive`` that has the body in its first message. Raises BodyRefused."""
        if scope["method"] in ("GET", "HEAD"):
            return receive  # no route reads their bodies
        sizes = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(len(size) > 7 or int(size) > MAX_BODY_BYTES for size in sizes):
            raise _too_large()
        try:
            async with asyncio.timeout(self._timeout_s):
                body = await self._read(receive, source)
        except TimeoutError as error:
            message = f"the body didn't come within {self._timeout_s:g} s"
            raise BodyRefused(408, message) from error
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> Message:
            return first.pop() if first else await receive()

        return receive_whole

    async def _read(self, receive: Receive, source: str) -> bytes:
        parts, size, taken = [], 0, 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyRefused(400, "the client left before the body was complete")
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body", False):
                    return _with_few_values(b"".join(parts))
                if not self._room.take(source, len(part)):
                    raise BodyRefused(503, "too many bodies are being received: send it again later")
                taken += len(part)
        finally:
            self._room.give_back(source, taken)


def _with_few_values(body: bytes) -> bytes:
    if (values := sum(map(body.count, (b",", b"[", b"{")))) > MAX_VALUES:
        raise BodyRefused(
            413, f"the body has {values} values, expected at most {MAX_VALUES}: send it in parts"
        )
    return body


def _too_large() -> BodyRefused:
    return BodyRefused(413, f"the body has more than {MAX_BODY_BYTES} bytes")
