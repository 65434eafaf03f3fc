"""Reads request bodies as strict JSON, writes JSON responses, and checks the admin key.

Strict: no NaN, bounded nesting, no integer beyond MessagePack's; the standard library, which FastAPI uses,
accepts all of these. Events are the exception: if the whole body can't be read, each event is read on its
own, and the good ones are kept.
"""

import asyncio
import hmac
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

MAX_BODY_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 8
MAX_EVENTS: Final = 500  # in one body
BODY_TIMEOUT_S: Final = 10.0  # a client that sends a byte a minute would hold a place for ever
_EVENTS: Final = re.compile(rb'\s*\{\s*"events"\s*:\s*\[(.*)\]\s*\}\s*', re.DOTALL)
# A lone quote is a string that never ends.
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{},"]', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{},]")
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class StrictRequest(Request):
    """Request with a bounded body, in bytes and in time, and an error that says why it isn't JSON."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    self._body = await self._read()
            except TimeoutError as error:
                message = f"the body didn't come within {BODY_TIMEOUT_S:g} s"
                raise HTTPException(408, message) from error
        return self._body

    async def _read(self) -> bytes:
        parts, size = [], 0
        async for part in self.stream():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body has more than {MAX_BODY_BYTES} bytes")
        return b"".join(parts)

    async def json(self) -> Any:
        body = await self.body()
        try:
            return msgspec.json.decode(body)
        except DECODE_ERRORS as error:
            events = read_events(body) if self.url.path == "/v1/events" else None
            if events is None:
                raise HTTPException(400, f"the body is not JSON: {error}") from error
            return {"events": events}


class StrictRoute(APIRoute):
    """Route that reads its body with ``StrictRequest``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def check_admin_key(given: str | None, expected: str, header: str) -> None:
    """Raises 401 if no key is given, 403 if it isn't the expected one; an empty one grants no access."""
    if given is None:
        raise HTTPException(401, f"the header {header} is missing: see state/run/admin.key")
    if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
        raise HTTPException(403, f"the header {header} is wrong: see state/run/admin.key")


def read_events(body: bytes) -> list[Any] | None:
    """Events of a body that isn't strict JSON, each read on its own; None if the body is no list of events.

    Cuts the array by brackets and strings, without recursion. NaN, 1e999 and lone surrogates are read, so
    that the check of each event can name the field; an event that is no JSON at all is returned as text.
    """
    opening = _EVENTS.fullmatch(body)
    if opening is None:
        return None
    array = opening.group(1)
    depth, start = 0, 0
    events: list[Any] = []
    for token in _tokens(array):
        text = token.group()
        if text in b"[{":
            depth += 1
        elif text in b"]}":
            depth -= 1
            if depth < 0:
                return None
        elif text == b"," and depth == 0:
            # More than MAX_EVENTS are refused whole: the rest is counted, not read.
            events.append(
                _read_event(array[start : token.start()]) if len(events) < MAX_EVENTS else None
            )
            start = token.end()
    return None if depth else [*events, _read_event(array[start:])]


def _tokens(array: bytes) -> Iterator[re.Match[bytes]]:
    """Strings, brackets and commas, in linear time: no byte is read more than three times."""
    for token in _TOKEN.finditer(array):
        if token.group() == b'"':
            # All later quotes are escaped, so a search from any of them would fail at the end too.
            yield from _BRACKET.finditer(array, token.end())
            return
        yield token


def _read_event(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text[:200].decode("utf-8", "replace")


def storable(value: Any) -> Any:
    """Returns the value if MessagePack can store it; raises ValueError, for a pydantic validator."""
    if _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested in more than {MAX_DEPTH} levels")
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise ValueError(f"not storable: {error}") from error
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether a value has more than ``levels`` levels; a scalar has one. Goes no deeper than that."""
    if levels == 0:
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_deeper(element, levels - 1) for element in inner)
