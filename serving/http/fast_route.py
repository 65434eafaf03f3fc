"""The short way to the routes that are asked most, past FastAPI's validation and dependencies.

A body that msgspec takes in one pass goes straight to the route's function. Whatever else comes (a body in
pieces, another type of content, anything that is refused) goes the careful way, from its first byte on, as if
the short one weren't there: so a refusal has one wording, and /docs one source.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.strict_json import BODY_TIMEOUT_S, MAX_BODY_BYTES, StrictRoute, too_slow

Endpoint = Callable[[Any], Awaitable[Response]]
E = TypeVar("E", bound=Endpoint)
_BODY: Final = "fast_body"  # the attribute by which a route's function names its struct


def fast(body: type[msgspec.Struct]) -> Callable[[E], E]:
    """Marks a route's function: it takes ``body`` as well as the model that its signature names, for the two
    have the same fields."""

    def mark(endpoint: E) -> E:
        setattr(endpoint, _BODY, body)
        return endpoint

    return mark


class FastRoute(StrictRoute):
    """A strict route that has a short way too, where its function is marked with ``fast``."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **more: Any) -> None:
        super().__init__(path, endpoint, **more)
        body = getattr(endpoint, _BODY, None)
        if body is not None:
            self.app = FastLane(body, endpoint, careful=self.app)


class FastLane:
    """ASGI: the short way, with the careful one behind it."""

    def __init__(self, body: type[msgspec.Struct], endpoint: Endpoint, careful: ASGIApp) -> None:
        self._decode = msgspec.json.Decoder(body).decode
        self._endpoint, self._careful = endpoint, careful

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = await _first_of(receive)
        asked = self._read(scope, first)
        if asked is None:
            return await self._careful(scope, _again(first, receive), send)
        response = await self._endpoint(asked)
        await response(scope, receive, send)

    def _read(self, scope: Scope, first: Message) -> Any:
        """The whole body, checked; None where the careful way must look at it."""
        body = first.get("body", b"")
        if first.get("more_body") or len(body) > MAX_BODY_BYTES or not _is_json(scope):
            return None
        try:
            return self._decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None


async def _first_of(receive: Receive) -> Message:
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await receive()
    except TimeoutError as error:
        raise too_slow() from error


def _again(first: Message, receive: Receive) -> Receive:
    """What was received, once more, and then the rest."""
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return first

    return replayed


def _is_json(scope: Scope) -> bool:
    """Only this: what a page of another origin may send unasked (text/plain) is none of ours."""
    for name, value in scope["headers"]:
        if name == b"content-type":
            kind: bytes = value.partition(b";")[0].strip().lower()
            return kind == b"application/json"
    return False
