"""Responses to requests that are refused or fail, as all routes and layers give them."""

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


class Unavailable(RuntimeError):
    """Temporary refusal with an HTTP status: try again after ``retry_after_s``."""

    status = 503

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
