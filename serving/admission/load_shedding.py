"""The outermost layer of a replica's HTTP: counts and times every request, and turns away early what can't be
answered in time: before its body is read, at a small part of what an answer costs.

Lists and events have limits of their own, so that neither starves the other: a list that is refused is asked
for again, an event is the truth. Health, metrics and pages always pass.
"""

import json
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, Protocol

from serving.admission.admission import CLIENT, WAIT, TokenBuckets, Limit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LISTS, EVENTS, OTHERS = "/v1/recommend", "/v1/events", "/v1/"
# Of other recommenders' clients: lists, events, and all that they may ask but health.
_FOREIGN_LISTS: Final = ("/api/recommend/", "/api/session/recommend", "/rank/", "/recommend/")
_FOREIGN_EVENTS: Final = ("/api/feedback", "/feedback")
_FOREIGN: Final = ("/api/", "/train/", "/inference/", "/flush")
_HEALTH: Final = "/api/health/"
_LOOPBACK: Final = ("127.0.0.1", "::1")
# When the request at work came in, of time.monotonic: what its deadline counts from.
ARRIVED_S: ContextVar[float | None] = ContextVar("arrived_s", default=None)


class Tally(Protocol):
    """Where it is counted."""

    def answered(self, route: str, status: int, seconds: float) -> None: ...

    def turned_away(self, route: str, reason: str) -> None: ...


class LoadShedder:
    """ASGI. ``lists`` is told by the service how long requests wait for the thread."""

    def __init__(
        self, app: App, tally: Tally, lists: Limit, events: Limit, others: Limit, clients: TokenBuckets
    ) -> None:
        self._app, self._tally, self._clients = app, tally, clients
        self._lists, self._events, self._others = lists, events, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path, now_s = scope["path"], time.monotonic()
        limit, route = self._limit(path)
        if limit is None:
            return await self._timed(scope, receive, send, now_s)
        wait_s = self._clients.take(_client(scope), now_s)
        reason = CLIENT if wait_s > 0 else limit.refusal(now_s)
        if reason:
            self._tally.turned_away(route, reason)
            return await _refuse(send, reason, wait_s, limit)
        limit.enter(now_s)
        before = ARRIVED_S.set(now_s)
        try:
            await self._timed(scope, receive, send, now_s)
        finally:
            ARRIVED_S.reset(before)
            limit.leave(time.monotonic())

    def _limit(self, path: str) -> tuple[Limit | None, str]:
        if path == LISTS or path.startswith(_FOREIGN_LISTS):
            return self._lists, LISTS
        if path == EVENTS or path in _FOREIGN_EVENTS:
            return self._events, EVENTS
        limited = path.startswith((OTHERS, *_FOREIGN)) and not path.startswith(_HEALTH)
        return (self._others, "other") if limited else (None, "")

    async def _timed(self, scope: Scope, receive: Receive, send: Send, began_s: float) -> None:
        status = 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._tally.answered(route, status, time.monotonic() - began_s)


def _client(scope: Scope) -> str:
    """Who asks: the address; behind a proxy of this machine the one that the proxy saw, if it says so."""
    client = scope.get("client")
    address = str(client[0]) if client else ""
    if address in _LOOPBACK:
        # The last is our proxy's word; those before it are the caller's, who may say anything.
        told = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        if told:
            return str(told[-1].decode("latin-1").rpartition(",")[2].strip())
    return address


async def _refuse(send: Send, reason: str, wait_s: float, limit: Limit) -> None:
    """A whole answer that says no, and when to try again."""
    status, told = 503, f"more than {limit.most} requests at a time"
    if reason == CLIENT:
        status, told = 429, "one caller alone asks for more than serve.client_rate allows"
    elif reason == WAIT:
        told = "it would take too long: too many wait already"
    body = json.dumps({"error": told, "details": []}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(max(1, math.ceil(wait_s))).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
