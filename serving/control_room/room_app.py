"""HTTP app of the control room: the page's files are public, everything else needs the key.

The page reads the key from its URL's fragment (after the #), which no server and no log sees, and sends it in
``Authorization: Bearer``.
"""

import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.control_room.hub import Full, Hub, event

WEB: Final = Path(__file__).parent / "web"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
_NO_STORE: Final = _HEADERS | {"cache-control": "no-store"}
KINDS: Final = ("items", "users")
Inspect = Callable[[str, str], tuple[int, bytes]]  # kind, id → status, JSON
_MAX_ID_LENGTH: Final = 256


class HostCheck:
    """ASGI middleware that refuses foreign hosts: a page must not reach the room by a name of its own."""

    def __init__(self, app: ASGIApp, is_allowed: Callable[[str], bool]) -> None:
        self._app, self._is_allowed = app, is_allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if self._is_allowed(headers.get(b"host", b"").decode("latin-1")):
            return await self._app(scope, receive, send)
        refusal = _problem(421, "the host isn't this room's: add it to access.hosts")
        await refusal(scope, receive, send)


def is_key(authorization: str, key: str) -> bool:
    """Whether an Authorization header has the key. An empty key fits none."""
    token = authorization.removeprefix("Bearer ")
    return bool(key) and hmac.compare_digest(token.encode(), key.encode())


def build_room(
    hub: Hub, curves: Callable[[], bytes], inspect: Inspect, key: str,
    host_is_allowed: Callable[[str], bool] = lambda host: True,
) -> Starlette:  # fmt: skip
    """Builds the app. ``curves``: the history as JSON, for a new page. It and ``inspect`` run in threads.

    An empty key refuses every request. ``host_is_allowed`` judges Host headers.
    """

    def has_key(request: Request) -> bool:
        return is_key(request.headers.get("authorization", ""), key)

    async def stream(request: Request) -> Response:
        if not has_key(request):
            return _refused()
        events = _events(hub.subscribe(), curves)
        return StreamingResponse(events, headers=_NO_STORE, media_type="text/event-stream")

    async def inspected(request: Request) -> Response:
        if not has_key(request):
            return _refused()
        kind, name = request.path_params["kind"], request.path_params["name"]
        if kind not in KINDS or not 0 < len(name) <= _MAX_ID_LENGTH:
            expected = f"one of {', '.join(KINDS)} and 1 to {_MAX_ID_LENGTH} characters"
            return _problem(404, f"expected {expected}")
        status, body = await run_in_threadpool(inspect, kind, name)
        return Response(body, status, _NO_STORE, "application/json")

    return Starlette(
        routes=[
            Route("/", _to_page),
            Route("/control", _file),
            Route("/control/api/stream", stream),
            Route("/control/api/{kind}/{name:path}", inspected),
            Route("/control/{file}", _file),
            Route("/healthz", _healthy),
        ],
        middleware=[Middleware(HostCheck, is_allowed=host_is_allowed)],
    )


async def _events(pictures: AsyncGenerator[bytes], curves: Callable[[], bytes]) -> AsyncIterator[bytes]:
    yield event("curves", await run_in_threadpool(curves))
    async with aclosing(pictures):
        try:
            async for picture in pictures:
                yield picture
        except Full as error:
            yield event("full", str(error).encode())


async def _to_page(_: Request) -> Response:
    return RedirectResponse("/control", headers=_HEADERS)


async def _file(request: Request) -> Response:
    name = request.path_params.get("file", "index.html")
    file = WEB / name
    if file.suffix not in _TYPES or file.parent != WEB or not file.is_file():
        return _problem(404, "file not found")
    return Response(file.read_bytes(), 200, _HEADERS, _TYPES[file.suffix])


async def _healthy(_: Request) -> Response:
    return JSONResponse({"status": "ok"}, headers=_HEADERS)


def _refused() -> Response:
    return _problem(401, "the key is missing or wrong, expected the one in STATE/run/control.key")


def _problem(status: int, error: str) -> Response:
    return JSONResponse({"error": error}, status, _NO_STORE)
