"""Disables Serve's tracking of each request: no timeout of its own, and no cancellation when a client leaves.

Each wait of a request has its own limit, and an event must be committed even if its client leaves. The
tracking would take two tasks and a queue: a third of a request's cost.
"""

from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

# value of RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
CALLBACK: Final = "serving.admission.disable_request_tracking:middlewares"
_HEADERS: Final = [
    (b"x-request-disconnect-disabled", b"?1"),
    (b"x-request-timeout-seconds", b"0"),  # none
]


class RequestTrackingOff:
    """ASGI middleware outside Serve's own: sets the headers last, so that a client can't override them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], *_HEADERS]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Middlewares that Serve loads in each process that accepts requests."""
    return [Middleware(RequestTrackingOff)]
