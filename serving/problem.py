"""Response to a request that is refused or fails, as all routes and layers give it."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response


def problem(
    message: str, status: int, details: Sequence[Any] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """``details``: the fields that are wrong."""
    body = msgspec.json.encode({"error": message, "details": details})
    return Response(body, status, headers, "application/json")
