"""Reads request bodies as strict JSON, and writes JSON responses.

Strict: no NaN, bounded nesting, no integer beyond MessagePack's; the standard library, which FastAPI uses,
accepts all of these. Events are the exception: if the whole body can't be read, each event is read on its
own, and the good ones are kept.
"""

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from recsys.events.event_types import MAX_EVENT_BYTES

MAX_DEPTH: Final = 8
MAX_EVENTS: Final = 500  # in one body
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_OPENING: Final = re.compile(rb'\s*+\{\s*+"events"\s*+:\s*+\[')
_CLOSING: Final = re.compile(rb"\]\s*+\}\s*+")
_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
# Whole strings and brackets; possessive, so that each level fails at the first byte that it can't take.
_NESTED = _STRING
for _ in range(MAX_DEPTH + 1):
    _NESTED = rb'%s|[\[{](?:[^"\[\]{}]++|%s)*+[\]}]' % (_STRING, _NESTED)
_EVENT: Final = re.compile(rb'(?:[^"\[\]{},]++|%s)*+' % _NESTED, re.DOTALL)
VALUE: Final = re.compile(rb'%s|[^\s"\[\]{},]++' % _NESTED, re.DOTALL)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number out of range: {text[:20]}")
    return value


# By a hook, in a time that is linear in the digits: msgspec itself takes 20 µs for 1e308.
_decoder: Final = msgspec.json.Decoder(float_hook=_finite)


def decode(body: bytes) -> Any:
    """The value of strict JSON. Raises one of ``DECODE_ERRORS``."""
    return _decoder.decode(body)


class StrictRequest(Request):
    """Request that says why its body isn't JSON. The body is complete: see serving.admission.whole_body."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return decode(body)
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


def json_response(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def read_events(body: bytes) -> list[Any] | None:
    """Events of a body that isn't strict JSON, each read on its own; None if the body is no list of events.

    Cuts the array by strings and brackets in one pass: an event nested beyond what is valid ends it. NaN,
    1e999 and lone surrogates are read, so that the check of each event can name the field; an event that is
    no JSON at all is returned as text. More than MAX_EVENTS are refused whole, so the rest isn't looked at.
    """
    if (opening := _OPENING.match(body)) is None:
        return None
    events: list[Any] = []
    at = opening.end()
    while len(events) < MAX_EVENTS:
        event = _EVENT.match(body, at)
        assert event is not None  # it may be empty
        end = event.end()
        events.append(_read_event(event.group()))
        if body[end : end + 1] != b",":
            return events if _CLOSING.fullmatch(body, end) else None
        at = end + 1
    return [*events, None]


def _read_event(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text[:200].decode("utf-8", "replace")


def small(value: Any) -> Any:
    """Returns the value if it is no larger than an event; raises ValueError. For what each list stores."""
    try:
        size = len(msgspec.json.encode(value))
    except RecursionError:
        size = MAX_EVENT_BYTES + 1
    if size > MAX_EVENT_BYTES:
        raise ValueError(f"more than {MAX_EVENT_BYTES} bytes of JSON")
    return value


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
