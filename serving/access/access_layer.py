"""Outermost ASGI layer of a replica: refuses foreign hosts, origins and callers before a body is read, hands
the caller to the routes, and writes the audit trail."""

import math
from collections.abc import Callable
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.access.access_control import AccessControl
from serving.access.audit import AuditTrail
from serving.access.caller import ANONYMOUS, Caller, Denied
from serving.access.scopes import AUDITED
from serving.admission.load_shedding import RequestMetrics
from serving.problem import problem

_CALLER: Final = "caller"  # in the ASGI scope


class AccessLayer:
    """ASGI middleware. ``has_route``: whether anything answers a request; of a route that nobody lists, only
    the admin would learn so."""

    def __init__(
        self, app: ASGIApp, control: AccessControl, trail: AuditTrail, metrics: RequestMetrics,
        now_ms: Callable[[], int], has_route: Callable[[Scope], bool] = lambda scope: True,
    ) -> None:  # fmt: skip
        self._app, self._control, self._trail = app, control, trail
        self._metrics, self._now_ms, self._has_route = metrics, now_ms, has_route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        try:
            if scope["type"] != "http":
                raise Denied(403, "scope", "there are no web sockets here")
            caller = scope[_CALLER] = self._control.admit(scope)
        except Denied as error:
            denied = error
            if scope["type"] == "http" and denied.reason in ("key", "scope") and not self._has_route(scope):
                text = f"there is no route {scope['method']} {scope['path'][:80]}: /docs lists them"
                denied = Denied(404, "route", text)
            self._metrics.count_refused("access", denied.reason)
            fields = self._fields(scope, "")
            self._trail.refusal(self._now_ms(), **fields, status=denied.status, why=str(denied))
            return await refusal(denied)(scope, receive, send)
        if scope["method"] == "HEAD":  # as GET: the server leaves out the body
            scope = dict(scope, method="GET")
        if self._control.needed_scope(scope["method"], scope["path"]) in AUDITED:
            return await self._audited(scope, receive, send, caller)
        await self._app(scope, receive, send)

    async def _audited(self, scope: Scope, receive: Receive, send: Send, caller: Caller) -> None:
        status = 500

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            fields = self._fields(scope, caller.key_id)
            self._trail.call(self._now_ms(), **fields, status=status)

    def _fields(self, scope: Scope, key_id: str) -> dict[str, Any]:
        address = self._control.address(scope)
        method = scope.get("method", "")
        return {"key": key_id, "address": address, "method": method, "path": scope["path"][:300]}


def caller_of(scope: Scope) -> Caller:
    """Caller of a request that was admitted; one without any scope where no layer decided."""
    caller: Caller = scope.get(_CALLER, ANONYMOUS)
    return caller


def refusal(denied: Denied) -> Response:
    """Response to a refused call."""
    headers = {"retry-after": str(max(1, math.ceil(denied.wait_s)))} if denied.wait_s else {}
    headers |= {"www-authenticate": "Bearer"} if denied.status == 401 else {}
    return problem(str(denied), denied.status, headers=headers)
