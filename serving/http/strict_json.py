"""Request bodies as JSON, read strictly: no NaN, no bottomless nesting, no integer beyond MessagePack's.

FastAPI would read them with the standard library, which takes all of these. Events alone are read one by one
where the whole can't be: the good ones are kept.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from serving.http.tolerant_json import read_events

MAX_BODY_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 8
BODY_TIMEOUT_S: Final = 10.0


def too_slow() -> HTTPException:
    """For a body that doesn't come: who sends one byte a minute would hold a place for ever."""
    return HTTPException(408, f"the body didn't come within {BODY_TIMEOUT_S:g} s")


class StrictRequest(Request):
    """A request whose body is bounded in size and in time, and whose ``json`` says what is wrong."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            try:
                self._body = await asyncio.wait_for(self._read(), BODY_TIMEOUT_S)
            except TimeoutError as error:
                raise too_slow() from error
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
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            events = read_events(body) if self.url.path == "/v1/events" else None
            if events is None:
                raise HTTPException(400, f"the body is not JSON: {error}") from error
            return events


class StrictRoute(APIRoute):
    """A route that reads its body with ``StrictRequest``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly


def storable(value: Any) -> Any:
    """The value, where it can be stored; raises ValueError, for a pydantic validator."""
    if _depth(value) > MAX_DEPTH:
        raise ValueError(f"nested in more than {MAX_DEPTH} levels")
    try:
        msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise ValueError(f"not storable: {error}") from error
    return value


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
