"""Outermost ASGI layer of a replica: counts and times every request, and refuses early what would come too
late: before its body is read, at a small part of an answer's cost.

Lists and events have separate limits, so that neither starves the other: a refused list is asked for again,
an event is the truth. Health, metrics and pages always pass.
"""

import math
import time
from contextvars import ContextVar
from typing import Final, Protocol

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admission.admission import CLIENT, WAIT, Limit, TokenBuckets

LISTS, EVENTS, OTHERS = "/v1/recommend", "/v1/events", "/v1/"
# Paths of the Gorse and Metarank APIs: lists, events, and the rest without health.
_COMPAT_LISTS: Final = ("/api/recommend/", "/api/session/recommend", "/rank/", "/recommend/")
_COMPAT_EVENTS: Final = ("/api/feedback", "/feedback")
_COMPAT: Final = ("/api/", "/train/", "/inference/", "/flush")
_HEALTH: Final = "/api/health/"
_LOOPBACK: Final = ("127.0.0.1", "::1")
# Arrival of the current request, by time.monotonic: its deadline counts from it.
ARRIVED_S: ContextVar[float | None] = ContextVar("arrived_s", default=None)


class RequestMetrics(Protocol):
    """Receives the counts."""

    def observe_request(self, route: str, status: int, seconds: float) -> None: ...

    def count_refused(self, route: str, reason: str) -> None: ...


class LoadShedder:
    """ASGI middleware. The service reports to ``lists`` how long requests wait for the thread."""

    def __init__(
        self, app: ASGIApp, metrics: RequestMetrics, lists: Limit, events: Limit, others: Limit,
        clients: TokenBuckets,
    ) -> None:  # fmt: skip
        self._app, self._metrics, self._clients = app, metrics, clients
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
            self._metrics.count_refused(route, reason)
            return await _refusal(reason, wait_s, limit)(scope, receive, send)
        limit.enter(now_s)
        token = ARRIVED_S.set(now_s)
        try:
            await self._timed(scope, receive, send, now_s)
        finally:
            ARRIVED_S.reset(token)
            limit.leave(time.monotonic())

    def _limit(self, path: str) -> tuple[Limit | None, str]:
        if path == LISTS or path.startswith(_COMPAT_LISTS):
            return self._lists, LISTS
        if path == EVENTS or path in _COMPAT_EVENTS:
            return self._events, EVENTS
        limited = path.startswith((OTHERS, *_COMPAT)) and not path.startswith(_HEALTH)
        return (self._others, "other") if limited else (None, "")

    async def _timed(self, scope: Scope, receive: Receive, send: Send, began_s: float) -> None:
        status = 500

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe_request(route, status, time.monotonic() - began_s)


def _client(scope: Scope) -> str:
    """Address of the client; behind a proxy on this machine, the address that the proxy reports."""
    client = scope.get("client")
    address = str(client[0]) if client else ""
    if address in _LOOPBACK:
        # Our proxy appended the last entry; the caller may have written the earlier ones.
        hops = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        if hops:
            return str(hops[-1].decode("latin-1").rpartition(",")[2].strip())
    return address


def _refusal(reason: str, wait_s: float, limit: Limit) -> Response:
    """Response that refuses and says when to retry."""
    status, message = 503, f"more than {limit.most} requests at a time"
    if reason == CLIENT:
        status, message = 429, "one client asks for more than serve.client_rate allows"
    elif reason == WAIT:
        message = "overloaded: the queue wait would exceed the deadline"
    retry_after = {"retry-after": str(max(1, math.ceil(wait_s)))}
    return JSONResponse({"error": message, "details": []}, status, retry_after)
