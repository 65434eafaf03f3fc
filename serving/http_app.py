"""The API over HTTP: routes that check, call the service and encode. No state of their own.

Bodies of at most 1 MB; errors name the field, the value and what was expected; what can't be done now is 503
with Retry-After. Everything a viewer's page needs is here too, so that it has one origin.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException as StarletteHTTPException

from recsys.events.hashing import Id
from serving import request as values
from serving.admission.admission import TokenBuckets, Limit
from serving.admission.load_shedding import LoadShedder
from serving.compat.mount import mount
from serving.http import api_models as models
from serving.http import fast_bodies
from serving.http.fast_route import FastRoute, fast
from serving.http.serving_metrics import ServingMetrics
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, REJECTED, Result
from serving.ingestion.write_api import Unavailable
from serving.replica import inspection
from serving.service import Service

_LATE_S: Final = 0.5  # between two looks at a service that catches up late
WEB: Final = Path(__file__).parent / "web"
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": models.ProblemOut, "description": about}
    for status, about in {
        400: "Not JSON",
        413: "More than 1 MB",
        422: "A field is wrong",
        503: "Not now: see Retry-After",
    }.items()
}
_ADMIN_PROBLEMS: Final = _PROBLEMS | {
    401: {"model": models.ProblemOut, "description": "X-Admin-Key is missing"},
    403: {"model": models.ProblemOut, "description": "X-Admin-Key is wrong"},
}


def build_app(
    service: Service, admin_key: Callable[[], str], wait_s: float = 0.0,
    started: Callable[[], None] = lambda: None,
) -> FastAPI:  # fmt: skip
    """The app of one replica. It starts and stops the service with itself, and counts as started once the
    service has caught up with the log, after ``wait_s`` at the latest. ``started`` is called once it has, in
    a thread. ``admin_key`` is asked at each use; an empty one opens nothing."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        await service.caught_up(wait_s)
        late = asyncio.create_task(_once_ready(service, started))
        if service.ready:
            await late
        yield
        late.cancel()
        await desk.write_backs.close()
        await service.stop()

    app: FastAPI = FastAPIOffline(  # /docs without a content delivery network
        title="recsys", version="1", lifespan=life,
        description="A recommender that learns from every swipe.",
    )  # fmt: skip
    app.docs_url = "/docs"  # where they are: Ray's dashboard asks
    app.router.route_class = FastRoute
    metrics = app.state.metrics = ServingMetrics(service)
    serve = service.config.serve
    app.add_middleware(
        LoadShedder, tally=metrics, lists=service.admission, events=Limit(serve.max_events),
        others=Limit(serve.max_ongoing), clients=TokenBuckets(serve.client_rate),
    )  # fmt: skip
    _add_errors(app)
    _add_viewer_routes(app, service, metrics)
    _add_admin_routes(app, service, admin_key)
    _add_health_routes(app, service, metrics)
    desk = mount(app, service, metrics, admin_key)
    _add_pages(app)
    return app


async def _once_ready(service: Service, started: Callable[[], None]) -> None:
    while not service.ready:
        await asyncio.sleep(_LATE_S)
    await asyncio.to_thread(started)


def _add_viewer_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    @app.post("/v1/recommend", response_model=models.RecommendOut, responses=_PROBLEMS)
    @fast(fast_bodies.RecommendIn)
    async def recommend(body: models.RecommendIn) -> Response:
        """Items for a user, ranked by the freshest model."""
        started = time.perf_counter()
        answer = await service.recommend(_request_of(body))
        metrics.left_out(answer.degraded)
        return _json(_answer_of(answer, started))

    @app.post("/v1/events", status_code=202, response_model=models.EventsOut, responses=_PROBLEMS)
    @fast(fast_bodies.EventsIn)
    async def events(body: models.EventsIn) -> Response:
        """What viewers did. Answered once it is committed; send it again where no answer came: repeats of an
        `event_id` count once."""
        taken = await service.write_api.take(body.events)
        for status in (ACCEPTED, DUPLICATE, REJECTED):
            metrics.took(status, taken.count(status))
        return _json(_results_of(taken.results), 202)

    @app.get("/v1/sessions/{user_id:path}", response_model=models.SessionOut, responses=_PROBLEMS)
    async def session(user_id: str) -> Response:
        """What is known of a user right now."""
        return _json(await service.session(_id(user_id, "user_id")))

    @app.get("/v1/status", response_model=models.StatusOut)
    async def status() -> Response:
        """Which version answers, and how fresh it is."""
        return _json(service.status())


def _admin(admin_key: Callable[[], str]) -> Callable[..., Awaitable[None]]:
    """What lets in who says the key."""

    async def admin(x_admin_key: Annotated[str | None, Header()] = None) -> None:
        if x_admin_key is None:
            raise HTTPException(401, "the header X-Admin-Key is missing")
        expected = admin_key().encode()
        if not expected or not hmac.compare_digest(x_admin_key.encode(), expected):
            raise HTTPException(403, "the header X-Admin-Key is wrong: see state/run/admin.key")

    return admin


def _add_admin_routes(app: FastAPI, service: Service, admin_key: Callable[[], str]) -> None:
    admin = _admin(admin_key)
    common: dict[str, Any] = {
        "dependencies": [Depends(admin)], "responses": _ADMIN_PROBLEMS, "status_code": 202,
        "response_model": models.EventsOut,
    }  # fmt: skip

    @app.post("/v1/items", **common)
    async def put_items(body: models.ItemsIn) -> Response:
        """Publishes or changes items."""
        found = [item.model_dump(exclude_none=True) for item in body.items]
        return _json(_results_of(await service.write_api.put_items(found)), 202)

    @app.post("/v1/users", **common)
    async def put_users(body: models.UsersIn) -> Response:
        """Sets users' profiles."""
        found = [user.model_dump(exclude_none=True) for user in body.users]
        return _json(_results_of(await service.write_api.put_users(found)), 202)

    @app.delete("/v1/items/{item_id:path}", **common)
    async def remove_item(item_id: str) -> Response:
        """Takes an item away: it is recommended no more."""
        await service.write_api.remove_item(_id(item_id, "item_id"))
        return _json(_results_of([Result(0, ACCEPTED)]), 202)

    @app.delete("/v1/users/{user_id:path}", **common)
    async def erase_user(user_id: str) -> Response:
        """Forgets a user: the session as soon as the fold reads the request, mostly within a second, the rows
        with the next steps, log and archive an hour or more later. What others' item counters and the shared
        weights have of them stays; docs/api.md says it whole."""
        await service.write_api.erase_user(_id(user_id, "user_id"))
        return _json(_results_of([Result(0, ACCEPTED)]), 202)

    looks: dict[str, Any] = {"dependencies": [Depends(admin)], "responses": _ADMIN_PROBLEMS}

    @app.get("/v1/inspect/items/{item_id:path}", **looks)
    async def inspect_item(item_id: str) -> Response:
        """What this replica knows of an item: fields, counters, vector, popularity, what is near."""
        found = inspection.item(service.replica, _id(item_id, "item_id"), service.now_ms())
        if found is None:
            raise HTTPException(404, f"item_id is {item_id!r}, and no such item was ever published")
        return _json(found)

    @app.get("/v1/inspect/users/{user_id:path}", **looks)
    async def inspect_user(user_id: str) -> Response:
        """What is known of a user, and why a list as the feed would draw it for them now is as it is. Nothing
        is logged: it counts as no impression, and as no list."""
        name = _id(user_id, "user_id")
        session, policy = await service.session_of(name), service.reader.policies.resolve(name)
        wanted = values.Request(name, n=inspection.SHOWN, explain=True)
        answer = await service.recommend_unlogged(wanted, session, counts=False)
        items = [_item_of(its) for its in answer.items]
        said = {"items": items, "stamp": answer.stamp, "degraded": answer.degraded}
        return _json(inspection.user(service.replica, session, policy) | {"answer": said})


def _add_health_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Still catching up, or cut off"}})
    async def readyz() -> Response:
        """Whether the replica has caught up with the log and still reaches it; ``failure`` says why not."""
        unready = service.unready
        body = {"ready": not unready, "lag": service.reader.lag, "failure": unready}
        return _json(body, 503 if unready else 200)

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """For Prometheus: of the replica that answers."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        page = WEB / "index.html"
        if not page.exists():
            raise HTTPException(404, "there is no page in this installation")
        return Response(page.read_bytes(), media_type="text/html; charset=utf-8")

    if WEB.is_dir():
        app.mount("/static", StaticFiles(directory=WEB), name="static")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        details = [_detail(one) for one in error.errors()[:20]]
        return _json({"error": "the request isn't as expected", "details": details}, 422)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> Response:
        body = {"error": str(error.detail), "details": []}
        return _json(body, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Unavailable)
    async def unavailable(_: Request, error: Unavailable) -> Response:
        headers = {"retry-after": str(error.retry_after_s)}
        return _json({"error": str(error), "details": []}, 503, headers)


def _detail(error: dict[str, Any]) -> dict[str, str]:
    field = ".".join(str(part) for part in error["loc"] if part != "body")
    value = repr(error.get("input"))
    shown = value if len(value) <= 80 else value[:77] + "..."
    return {"field": field or "body", "value": shown, "expected": error["msg"]}


def _request_of(body: models.RecommendIn) -> values.Request:
    given = body.candidate_ids
    return values.Request(
        user_id=body.user_id,
        n=body.n,
        surface=body.surface,
        context=body.context,
        exclude_ids=tuple(body.exclude_ids),
        candidate_ids=None if given is None else tuple(given),
        explain=body.explain,
    )


def _answer_of(answer: values.Answer, started: float) -> dict[str, Any]:
    return {
        "request_id": answer.request_id,
        "items": [_item_of(item) for item in answer.items],
        "stamp": answer.stamp,
        "took_ms": round((time.perf_counter() - started) * 1000, 3),
        "degraded": answer.degraded,
    }


def _item_of(item: values.AnswerItem) -> dict[str, Any]:
    out: dict[str, Any] = {
        "item_id": item.item_id,
        "rank": item.rank,
        "score": item.score,
        "propensity": item.propensity,
        "sources": item.sources,
        "fields": item.fields,
    }
    if item.predictions is not None:
        out["predictions"] = item.predictions
    if item.reasons is not None:
        out["reasons"] = item.reasons
    return out


def _results_of(results: Sequence[Result]) -> dict[str, Any]:
    counts = {status: 0 for status in (ACCEPTED, DUPLICATE, REJECTED)}
    told: list[dict[str, Any]] = []
    for result in results:
        counts[result.status] += 1
        one: dict[str, Any] = {"index": result.index, "status": result.status}
        if result.error is not None:
            one["error"] = dict(zip(("field", "value", "expected"), result.error, strict=True))
        told.append(one)
    return {
        "accepted": counts[ACCEPTED],
        "duplicates": counts[DUPLICATE],
        "rejected": counts[REJECTED],
        "results": told,
    }


def _id(text: str, name: str) -> Id:
    if not 0 < len(text) <= 256:
        raise HTTPException(422, f"{name} has {len(text)} characters, expected 1 to 256")
    return text


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")
