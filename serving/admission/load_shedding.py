"""ASGI layer of a replica that counts and times requests, and admits them: only once their bodies are
complete, and if an answer wouldn't come too late. Most refusals precede the body, at a small part of an
answer's cost.

Lists and events have separate limits, so that neither starves the other: a refused list is asked for again,
an event is the truth. Health, metrics and pages always pass.
"""

import math
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, Protocol

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.events.event_types import CONTROL_CHARACTER
from serving.admission.admission import CLIENT, ONGOING, WAIT, Limit, TokenBuckets
from serving.admission.whole_body import BodyReceiver, BodyRefused
from serving.problem import problem

LISTS, EVENTS, OTHERS = "/v1/recommend", "/v1/events", "/v1/"
LIST_PATH: Final = re.compile(r"/v1/(recommend|rank|popular|latest|trending|items/.+/similar)")
BODY, PATH = "body", "path"  # further reasons for a refusal
_PATH_PROBLEM: Final = (
    "the path has a control character, expected an id without: erase a user with one by POST /v1/users/erase"
)
# When the current request was complete, by time.monotonic: its deadline counts from it.
ARRIVED_S: ContextVar[float | None] = ContextVar("arrived_s", default=None)


class RequestMetrics(Protocol):
    """Receives the counts."""

    def observe_request(self, route: str, status: int, seconds: float) -> None: ...

    def count_refused(self, route: str, reason: str) -> None: ...


class AddedPaths(Protocol):
    """Further paths that are limited, and probes, which aren't: ``lists`` and ``others`` are beginnings."""

    lists: list[str]
    events: list[str]
    others: list[str]
    health: list[str]


class LoadShedder:
    """ASGI middleware. The service reports to ``lists`` how long requests wait for the thread. ``address``
    returns the address that a request comes from. ``added``: routes of plug-ins."""

    def __init__(
        self, app: ASGIApp, metrics: RequestMetrics, lists: Limit, events: Limit, others: Limit,
        clients: TokenBuckets, bodies: BodyReceiver, address: Callable[[Scope], str],
        added: AddedPaths,
    ) -> None:  # fmt: skip
        self._app, self._metrics, self._clients = app, metrics, clients
        self._lists, self._events, self._others = lists, events, others
        self._bodies, self._address = bodies, address
        self._list_paths, self._event_paths = tuple(added.lists), {EVENTS, *added.events}
        self._other_paths, self._health = (OTHERS, *added.others), frozenset(added.health)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        limit, route = self._limit(scope["path"])
        if CONTROL_CHARACTER.search(scope["path"]):
            # A route would match without a newline at the end: alice%0A would mean alice.
            self._metrics.count_refused(route or "other", PATH)
            return await problem(_PATH_PROBLEM, 422)(scope, receive, send)
        now_s = time.monotonic()
        if limit is None:
            return await self._timed(scope, receive, send, now_s)
        address = self._address(scope)
        wait_s = self._clients.take(address, now_s)
        reason = CLIENT if wait_s > 0 else limit.refusal(now_s)
        if not reason:
            try:
                receive = await self._bodies.whole(scope, receive, address)
            except BodyRefused as refused:
                self._metrics.count_refused(route, BODY)
                return await _body_refusal(refused)(scope, receive, send)
            now_s = time.monotonic()
            reason = limit.refusal(now_s)  # others were admitted meanwhile
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
        if LIST_PATH.fullmatch(path) or path.startswith(self._list_paths):
            return self._lists, LISTS
        if path in self._event_paths:
            return self._events, EVENTS
        limited = path.startswith(self._other_paths) and path not in self._health
        return (self._others, "other") if limited else (None, "")

    async def _timed(self, scope: Scope, receive: Receive, send: Send, began_s: float) -> None:
        status = 500

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # Answers are of one version, and a page's modules must be, too.
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers.setdefault("cache-control", "no-cache")
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.observe_request(route, status, time.monotonic() - began_s)


def lists_gate(lists: Limit, metrics: RequestMetrics) -> Callable[[Scope], ASGIApp | None]:
    """Refuses lists by the limit alone, before the other layers and Serve have done anything: under overload
    there are more refusals than answers."""
    responses = {reason: _refusal(reason, 0.0, lists) for reason in (ONGOING, WAIT)}

    def refusal(scope: Scope) -> ASGIApp | None:
        reason = lists.refusal(time.monotonic()) if scope["path"] == LISTS else ""
        if not reason:
            return None
        metrics.count_refused(LISTS, reason)
        return responses[reason]

    return refusal


def _refusal(reason: str, wait_s: float, limit: Limit) -> Response:
    """Response that refuses and says when to retry."""
    status, message = 503, f"more than {limit.most} requests at a time"
    if reason == CLIENT:
        status, message = 429, "one client asks for more than serve.client_rate allows"
    elif reason == WAIT:
        message = "overloaded: the queue wait would exceed the deadline"
    headers = {"retry-after": str(max(1, math.ceil(wait_s)))}
    return problem(message, status, headers=headers)


def _body_refusal(refused: BodyRefused) -> Response:
    headers = {"connection": "close"}  # else uvicorn would read the rest for as long as it drips
    headers |= {"retry-after": "1"} if refused.status == 503 else {}
    return problem(str(refused), refused.status, headers=headers)
