"""Tells Serve not to stand watch over each request: no clock of its own ends one, and no client who leaves.

An answer takes milliseconds; what may wait in it has a limit of its own (a body ten seconds, a commit five, a
session one); and an event that was sent is to be committed whether or not the client stays for the answer. To
watch, Serve runs two more tasks and a queue for each request, which is a third of all that it costs.
"""

from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

CALLBACK: Final = "serving.admission.disable_request_tracking:middlewares"  # for RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH
_HEADERS: Final = [
    (b"x-request-disconnect-disabled", b"?1"),
    (b"x-request-timeout-seconds", b"0"),  # none
]


class RequestTrackingOff:
    """ASGI, around what Serve puts around the app: says so in each request's headers. What a client says
    there itself doesn't count."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], *_HEADERS]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve asks for, in each process that takes requests in."""
    return [Middleware(RequestTrackingOff)]
