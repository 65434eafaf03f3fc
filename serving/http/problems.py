"""Errors of the routes: what the schema says of them, and how each exception is answered."""

from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from recsys.events.event_types import Rejected
from recsys.events.rejection import show
from serving.access.access_layer import refusal
from serving.access.caller import Denied
from serving.http import api_models as models
from serving.ingestion.event_validation import FieldError
from serving.problem import Unavailable, problem

PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": models.ProblemOut, "description": description}
    for status, description in {
        400: "Not JSON",
        401: "The key or user token is missing, wrong, revoked or expired",
        403: "The key lacks a scope, or the page is of another origin",
        408: "The body didn't come in time",
        413: "More than 1 MB",
        421: "The host isn't this system's",
        422: "A field is wrong",
        429: "Over a quota: see Retry-After",
        503: "Temporarily refused: see Retry-After",
        507: "The disk has no space for events: see Retry-After",
    }.items()
}
UNKNOWN_ITEM: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": models.ProblemOut, "description": "No such item was ever published"}
}


def add_errors(app: FastAPI) -> None:
    """Adds handlers of the exceptions that routes raise."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        details = [_detail(each) for each in error.errors()[:20]]
        return problem("the request isn't as expected", 422, details)

    @app.exception_handler(Rejected)
    async def rejected(_: Request, error: Rejected) -> Response:
        return problem("the request isn't as expected", 422, [FieldError.of(error)])

    @app.exception_handler(StarletteHTTPException)
    async def http_error(_: Request, error: StarletteHTTPException) -> Response:
        return problem(str(error.detail), error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Denied)
    async def denied(_: Request, error: Denied) -> Response:
        return refusal(error)

    @app.exception_handler(Unavailable)
    async def unavailable(_: Request, error: Unavailable) -> Response:
        return problem(str(error), error.status, headers={"retry-after": str(error.retry_after_s)})


_EXPECTED: Final = {
    "extra_forbidden": "no field of this name; /docs lists those of each route",
    "missing": "a value: the field is required",
    "model_attributes_type": "a JSON object",
}


def _detail(error: dict[str, Any]) -> FieldError:
    parts = (str(part) for part in error["loc"] if part != "body")
    field = ".".join(part for part in parts if not part.startswith("constrained-"))
    expected = _EXPECTED.get(error["type"], error["msg"])
    if error["type"] == "model_attributes_type" and not field:
        expected += ", sent with content-type: application/json"
    return FieldError(field or "body", show(error.get("input")), expected)
