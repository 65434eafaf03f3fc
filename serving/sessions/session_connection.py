"""Sessions over one connection to Redis or Valkey: as many GETs under way as there are requests, in order.

A request reads one blob of some 25 KB, and nothing else. For that redis-py's asyncio client takes 58 µs of
processor time, this 14: no pool, no stream, no coroutine, no parser for what isn't asked. Other URLs than
``redis://`` (TLS, sockets of Unix, options) are redis-py's.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import unquote, urlsplit

from recsys.events.hashing import Id
from serving.sessions.session_store import (
    READ_TIMEOUT_S,
    RedisSessions,
    SessionReader,
    StoreUnavailable,
    session_key,
)

Answer = bytes | None
_PORT: Final = 6379


@dataclass(frozen=True)
class Address:
    """Where a store is, and how one gets in. No secret is shown."""

    host: str
    port: int
    greeting: tuple[tuple[bytes, ...], ...]  # commands before the first GET

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}"


def sessions_at(url: str) -> SessionReader:
    """What reads sessions from a store: quick where the URL is a plain one."""
    address = address_of(url)
    return RedisSessions(url) if address is None else LineSessions(address)


def address_of(url: str) -> Address | None:
    """``redis://[[user]:password@]host[:port][/db]``; None where there is more to it."""
    its = urlsplit(url)
    db = its.path.strip("/") or "0"
    if its.scheme != "redis" or its.query or its.hostname is None or not db.isdecimal():
        return None
    greeting: list[tuple[bytes, ...]] = []
    if its.password is not None:
        names = [name for name in (its.username, its.password) if name]
        greeting.append((b"AUTH", *(unquote(name).encode() for name in names)))
    if db != "0":
        greeting.append((b"SELECT", db.encode()))
    return Address(its.hostname, its.port or _PORT, tuple(greeting))


class LineSessions:
    """A ``SessionReader``. Used in one event loop. It connects when it is asked, and anew where the
    connection was lost, or has said nothing for a second: what was asked on that fails."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._line: _Line | None = None
        self._opening: asyncio.Task[_Line] | None = None

    def get(self, user_id: Id) -> Awaitable[Answer]:
        line = self._line
        if line is None or not line.sound(time.monotonic()):
            return self._get_anew(user_id)
        return line.ask((b"GET", session_key(user_id).encode()))

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._line is not None:
            self._line.abort()

    async def _get_anew(self, user_id: Id) -> Answer:
        if self._opening is None:  # the first of those that find no line opens it for all
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        try:
            line = await asyncio.shield(opening)
        finally:
            if opening.done() and self._opening is opening:
                self._opening = None
        return await line.ask((b"GET", session_key(user_id).encode()))

    async def _open(self) -> "_Line":
        if self._line is not None:
            self._line.abort()
        loop, its, line = asyncio.get_running_loop(), self._address, _Line()
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                await loop.create_connection(lambda: line, its.host, its.port)
                for command in its.greeting:
                    await line.ask(command)
        except BaseException as error:
            line.abort()
            if isinstance(error, OSError | TimeoutError):
                reason = f"the session store at {its} can't be reached: {error}"
                raise StoreUnavailable(reason) from error
            raise
        self._line = line
        return line


class _Line(asyncio.Protocol):
    """One connection: what was asked and not yet answered, oldest first. RESP, version 2."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[asyncio.Future[Answer], float]] = deque()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def sound(self, now_s: float) -> bool:
        """Whether it is open and answers: one end may be gone without a word."""
        late = self._waiting and now_s - self._waiting[0][1] > READ_TIMEOUT_S
        return self._transport is not None and not late

    def ask(self, command: Sequence[bytes]) -> "asyncio.Future[Answer]":
        """The answer to come: the next one to come that none before has taken."""
        answer: asyncio.Future[Answer] = self._loop.create_future()
        if self._transport is None:
            answer.set_exception(StoreUnavailable("the session store closed the connection"))
            return answer
        self._waiting.append((answer, time.monotonic()))
        words = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command)
        self._transport.write(b"*%d\r\n%s" % (len(command), words))
        return answer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        while self._waiting:
            answer, _ = self._waiting.popleft()
            _fail(answer, f"the session store closed the connection: {error or 'it ended'}")

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        start = 0
        while start < len(data) and self._waiting:
            end = self._take(data, start)
            if end < 0:
                break
            start = end
        self._buffer = data[start:]

    def _take(self, data: bytes, start: int) -> int:
        """Hands on the answer that begins at ``start``; where the next begins, -1 while more is to come."""
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return -1
        kind, rest, end = data[start : start + 1], data[start + 1 : line_end], line_end + 2
        value: Answer = None
        if kind == b"$" and rest != b"-1":
            stop = end + int(rest)
            if len(data) < stop + 2:
                return -1
            value, end = data[end:stop], stop + 2
        answer, _ = self._waiting.popleft()
        if kind not in (b"$", b"+"):
            _fail(answer, f"the session store refuses: {rest.decode(errors='replace')[:200]}")
            if kind != b"-":  # what follows can't be told apart
                self.abort()
                return len(data)
        elif not answer.done():  # whoever asked may have gone
            answer.set_result(value)
        return end


def _fail(answer: "asyncio.Future[Answer]", reason: str) -> None:
    if not answer.done():
        answer.set_exception(StoreUnavailable(reason))
        answer.exception()  # seen, whether or not somebody still waits for it
