"""What Serve is told about each request, whatever its client says."""

import asyncio
import importlib
from typing import Any

from serving.admission.disable_request_tracking import CALLBACK


def test_serve_is_told_last_so_that_a_client_has_no_say() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    module, _, name = CALLBACK.partition(":")
    [its] = getattr(importlib.import_module(module), name)()
    wrapped = its.cls(app, *its.args, **its.kwargs)
    theirs = [(b"x-request-timeout-seconds", b"9"), (b"x-request-disconnect-disabled", b"?0")]
    for scope in ({"type": "http", "headers": theirs}, {"type": "lifespan"}):
        asyncio.run(wrapped(scope, None, None))
    assert dict(seen[0]["headers"]) == {
        b"x-request-timeout-seconds": b"0", b"x-request-disconnect-disabled": b"?1",
    }  # fmt: skip
    assert seen[1] == {"type": "lifespan"} and len(theirs) == 2
