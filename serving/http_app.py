"""HTTP API of a replica: routes that validate, call the service and encode. No state of its own.

Bodies hold at most 1 MB; errors name the field, the value and what was expected; a temporary refusal is 503
with Retry-After. The app also serves the viewers' page, so that the page has one origin.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware

from experiments.assignment.policy import LENGTH
from recsys import plugins
from recsys.events.event_types import Rejected
from recsys.events.field_schema import check_fields
from recsys.events.hashing import Id
from recsys.events.rejection import show
from serving import request as values
from serving.access.access_layer import AccessLayer, caller_of, refusal
from serving.access.audit import AuditTrail
from serving.access.caller import Caller, Denied, network_of
from serving.access.scopes import ATTRIBUTE
from serving.admission.admission import EVENT_CALLS, Limit, TokenBuckets
from serving.admission.before_serve import GATES
from serving.admission.load_shedding import LoadShedder, lists_gate
from serving.admission.whole_body import BodyReceiver, BodyRoom
from serving.http import api_models as models
from serving.http.added_routes import load_routes
from serving.http.serving_metrics import ServingMetrics
from serving.http.strict_json import StrictRoute, json_response
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, REJECTED, FieldError, Result
from serving.ingestion.write_api import OverQuota, Unavailable
from serving.item_lists import Order, latest, popular, trending
from serving.problem import problem
from serving.replica import inspection
from serving.retrieval.item_filters import check_filters
from serving.service import Service

_READY_POLL_S: Final = 0.5
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
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
_UNKNOWN_ITEM: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": models.ProblemOut, "description": "No such item was ever published"}
}


def build_app(
    service: Service, admin_key: Callable[[], str], wait_s: float = 0.0,
    on_ready: Callable[[], None] = lambda: None, name: str = "local",
) -> FastAPI:  # fmt: skip
    """Builds the app of one replica. Its lifespan starts and stops the service.

    Startup is complete after ``service.caught_up(wait_s)``. ``on_ready`` is called in a thread once the
    service is ready. ``admin_key`` is read at each use; an empty one grants no access. ``name``: of the
    replica.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        await service.caught_up(wait_s)
        ready = asyncio.create_task(_call_once_ready(service, on_ready))
        if service.ready:
            await ready
        yield
        ready.cancel()
        await service.stop()
        await asyncio.to_thread(trail.close)

    app: FastAPI = FastAPIOffline(  # serves the assets of /docs itself, without a CDN
        title="recsys",
        version="1",
        lifespan=lifespan,
        description="A recommender that learns from every swipe.",
    )
    app.docs_url = "/docs"  # read by Ray's dashboard
    app.router.route_class = StrictRoute
    metrics = app.state.metrics = ServingMetrics(service)
    added = load_routes(service, metrics)
    serve, doors = service.config.serve, service.config.doors
    control = service.access_control(admin_key, added.scopes, added.health)
    app.add_middleware(
        LoadShedder, metrics=metrics, lists=service.admission, events=Limit(EVENT_CALLS),
        others=Limit(serve.max_ongoing), clients=TokenBuckets(serve.client_rate),
        bodies=BodyReceiver(BodyRoom(), doors.body_s),
        address=lambda scope: network_of(control.address(scope), 32, 64), added=added,
    )  # fmt: skip
    # A page of another origin reads a refusal only by the headers of the layer for origins.
    GATES[:] = [] if service.config.access.origins else [lists_gate(service.admission, metrics)]
    trail = AuditTrail(service.run_folder, name)
    app.add_middleware(AccessLayer, control=control, trail=trail, metrics=metrics, now_ms=service.timer_ms)
    if origins := service.config.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key"],
            expose_headers=["date", "retry-after"],
        )
    _add_errors(app)
    _add_ranking_routes(app, service, metrics)
    _add_viewer_routes(app, service, metrics)
    _add_list_routes(app, service, metrics)
    _add_admin_routes(app, service)
    _add_health_routes(app, service, metrics)
    app.include_router(added.router, responses=_PROBLEMS)
    _add_pages(app)
    _describe_keys(app)
    return app


async def _call_once_ready(service: Service, on_ready: Callable[[], None]) -> None:
    while not service.ready:
        await asyncio.sleep(_READY_POLL_S)
    await asyncio.to_thread(on_ready)


def _add_ranking_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    @app.post("/v1/recommend", response_model=models.RecommendOut, responses=_PROBLEMS)
    async def recommend(request: Request, body: models.RecommendIn) -> Response:
        """Items for a user, ranked by the freshest model."""
        n = body.n or service.live.control.policies.lengths.get(body.surface, LENGTH)
        return await answered(caller_of(request.scope), _request_of(body, n))

    @app.post("/v1/rank", response_model=models.RecommendOut, responses=_PROBLEMS)
    async def rank(request: Request, body: models.RankIn) -> Response:
        """The caller's candidates for a user, best first. `warnings` names those that aren't in the list."""
        return await answered(caller_of(request.scope), _request_of(body, body.n), body.log)

    async def answered(caller: Caller, request: values.Request, logged: bool = True) -> Response:
        began_s = time.perf_counter()
        check_fields(service.features.schema, "context", request.context, "context")
        check_filters(service.features, request.filters)
        service.check_list(caller, request.user_id)
        if caller.user_id is not None:  # a browser may not claim another age or country
            for name in service.config.safety.viewer_fields:
                request.context.pop(name, None)
        answer = await service.recommend(request, logged=logged, caller=caller)
        metrics.count_degraded(answer.degraded)
        # A list of the caller's own items proves nothing, unless the caller needs no proof.
        has_token = logged and (request.candidate_ids is None or caller.attributes)
        return json_response(
            _answer_out(answer, service.token_of(answer, request, caller) if has_token else "", began_s)
        )


def _add_viewer_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    @app.post("/v1/events", status_code=202, response_model=models.EventsOut, responses=_PROBLEMS)
    async def events(request: Request, body: models.EventsIn) -> Response:
        """Engagements of viewers. The answer comes after the commit; without an answer send them again:
        repeats of an `event_id` count once."""
        batch = await service.write_api.append_events(body.events, caller_of(request.scope))
        metrics.count_batch(batch)
        OverQuota.check(batch)
        return json_response(_results_out(batch.results, batch.unproven.total()), 202)

    @app.post("/v1/preferences", status_code=202, response_model=models.EventsOut, responses=_PROBLEMS)
    async def preferences(request: Request, body: models.PreferencesIn) -> Response:
        """Wishes of viewers: `block` or `mute` items with a value in a field, or see `less` of them; `none`
        takes a wish back. They hold for the next list, in every source. Muted items are shown where a caller
        names them."""
        caller = caller_of(request.scope)
        if caller.key_id and caller.user_id is None:
            caller.check_scope(ATTRIBUTE, "setting preferences without a user token")
        for preference in body.preferences:
            service.check_preference(caller, preference.user_id)
        wishes = [preference.model_dump(exclude_none=True) for preference in body.preferences]
        return json_response(_results_out(await service.write_api.put_preferences(wishes)), 202)

    @app.get("/v1/sessions/{user_id:path}", response_model=models.SessionOut, responses=_PROBLEMS)
    async def session(request: Request, user_id: str) -> Response:
        """Current session of a user: topics and recent items."""
        caller_of(request.scope).check_user(user_id)
        return json_response(await service.session_view(_id(user_id, "user_id")))

    @app.get("/v1/status", response_model=models.StatusOut, responses=_PROBLEMS)
    async def status() -> Response:
        """Version that answers, how fresh it is, and how fast."""
        return json_response(service.status() | metrics.answers())


def _add_list_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    lists = service.lists

    async def checked(request: Request, query: Annotated[models.ListQuery, Query()]) -> models.ListQuery:
        if not service.live.followers.ready:
            raise Unavailable(service.unready)
        caller = caller_of(request.scope)
        if caller.user_id is not None:
            service.check_list(caller, caller.user_id)
        check_filters(service.features, query.filters)
        return query

    Checked = Annotated[models.ListQuery, Depends(checked)]

    def answered(items: list[values.AnswerItem], degraded: list[str]) -> Response:
        metrics.count_degraded(degraded)
        return json_response({"items": items, "degraded": degraded})

    def add(order: Order) -> None:
        async def listed(query: Checked) -> Response:
            return answered(lists.ordered(order, query.n, query.filters), [])

        app.add_api_route(
            f"/v1/{order.__name__}", listed, name=order.__name__, description=order.__doc__,
            response_model=models.ItemListOut, responses=_PROBLEMS,
        )  # fmt: skip

    for order in (popular, latest, trending):
        add(order)

    @app.get(
        "/v1/items/{item_id:path}/similar",
        response_model=models.ItemListOut,
        responses=_PROBLEMS | _UNKNOWN_ITEM,
    )
    async def similar(item_id: str, query: Checked) -> Response:
        """Items nearest to one, by the cosine of their vectors."""
        try:
            items, missing = await lists.similar(query.n, query.filters, _id(item_id, "item_id"))
        except KeyError:
            raise HTTPException(404, f"item_id is {item_id!r}, and there is no such item") from None
        return answered(items, ["retrieval"] * missing)


def _add_admin_routes(app: FastAPI, service: Service) -> None:
    read: dict[str, Any] = {"responses": _PROBLEMS}
    write = read | {"status_code": 202, "response_model": models.EventsOut}

    @app.post("/v1/items", **write)
    async def put_items(body: models.ItemsIn) -> Response:
        """Publishes or changes items."""
        items = [item.model_dump(exclude_none=True) for item in body.items]
        return json_response(_results_out(await service.write_api.put_items(items)), 202)

    @app.post("/v1/users", **write)
    async def put_users(body: models.UsersIn) -> Response:
        """Sets users' profiles."""
        users = [user.model_dump(exclude_none=True) for user in body.users]
        return json_response(_results_out(await service.write_api.put_users(users)), 202)

    @app.delete("/v1/items/{item_id:path}", **write)
    async def remove_item(item_id: str) -> Response:
        """Removes an item: it is no longer recommended."""
        await service.write_api.remove_item(_id(item_id, "item_id"))
        return json_response(_results_out([Result(0, ACCEPTED)]), 202)

    @app.delete("/v1/users/{user_id:path}", **write)
    async def erase_user(user_id: str) -> Response:
        """Erases a user: the session as soon as the fold reads the request, mostly within a second; the rows
        with the next steps; log and archive an hour or more later. The user's contribution to other users'
        item counters and to the shared weights stays; see docs/reference/api.md."""
        return await erase(models.EraseIn(user_id=_id(user_id, "user_id")))

    @app.post("/v1/users/erase", **write)
    async def erase(body: models.EraseIn) -> Response:
        """Erases a user as DELETE does, also one whose id no path can name, such as one with a newline."""
        await service.write_api.erase_user(body.user_id)
        return json_response(_results_out([Result(0, ACCEPTED)]), 202)

    @app.get("/v1/inspect/items/{item_id:path}", responses=_PROBLEMS | _UNKNOWN_ITEM)
    async def inspect_item(item_id: str) -> Response:
        """State of an item in this replica: fields, counters, vector, popularity, nearest items."""
        state = inspection.item(service.replica, _id(item_id, "item_id"), service.now_ms())
        if state is None:
            raise HTTPException(404, f"item_id is {item_id!r}, and no such item was ever published")
        return json_response(state)

    @app.get("/v1/inspect/users/{user_id:path}", **read)
    async def inspect_user(user_id: str) -> Response:
        """State of a user, and a list as the feed would serve it now, with explanations. Nothing is logged:
        it counts neither as an impression nor as a list."""
        name = _id(user_id, "user_id")
        session = await service.session_of(name)
        request = values.Request(name, n=inspection.SHOWN, explain=True)
        policy = service.live.control.policies.resolve(name, request.surface)
        answer = await service.recommend_unlogged(request, session, counts=False)
        listed = {"items": answer.items, "stamp": answer.stamp, "degraded": answer.degraded}
        user = inspection.user(service.replica, session, policy)
        return json_response(user | {"answer": listed})


def _add_health_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Still catching up, or cut off"}})
    async def readyz() -> Response:
        """Whether the replica has caught up with the log and still reaches it; ``failure`` says why not."""
        unready = service.unready
        body = {"ready": not unready, "lag": service.live.followers.lag, "failure": unready}
        return json_response(body, 503 if unready else 200)

    @app.get("/metrics", response_class=Response, responses=_PROBLEMS)
    async def prometheus() -> Response:
        """Prometheus metrics of the replica that answers."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _add_pages(app: FastAPI) -> None:
    """Adds the page at ``/``, whose folder the plug-in ``index`` of the group ``recsys.pages`` is."""
    if "index" not in plugins.names(plugins.PAGES):
        return
    folder: Path = plugins.load(plugins.PAGES, "index")

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        page = (folder / "index.html").read_bytes()
        return Response(page, media_type="text/html; charset=utf-8")

    app.mount("/static", StaticFiles(directory=folder), name="static")


def _describe_keys(app: FastAPI) -> None:
    """Adds to the schema how to send a key: /docs gets its button Authorize."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        schema = described()
        bearer = {"type": "http", "scheme": "bearer", "description": "API key or user token"}
        schema["components"]["securitySchemes"] = {"bearer": bearer}
        return schema | {"security": [{"bearer": []}, {}]}

    app.openapi = openapi  # type: ignore[method-assign]


def _add_errors(app: FastAPI) -> None:
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


def _request_of(body: models.RecommendIn | models.RankIn, n: int) -> values.Request:
    given = None if body.candidate_ids is None else tuple(body.candidate_ids)
    fields = dict(body) | {"exclude_ids": tuple(body.exclude_ids), "candidate_ids": given, "n": n}
    plain, by_score = not fields.pop("profiling"), not fields.pop("explore", True)
    fields.pop("log", None)
    return values.Request(**fields, plain=plain, by_score=by_score)


def _answer_out(answer: values.Answer, token: str, began_s: float) -> dict[str, Any]:
    return {
        "request_id": answer.request_id, "token": token, "items": answer.items, "stamp": answer.stamp,
        "took_ms": round((time.perf_counter() - began_s) * 1000, 3), "degraded": answer.degraded,
        "warnings": [{"item_id": item_id, "why": why} for item_id, why in answer.left_out.items()],
    }  # fmt: skip


def _results_out(results: Sequence[Result], unproven: int = 0) -> dict[str, Any]:
    counts = Counter(result.status for result in results)
    return {
        "accepted": counts[ACCEPTED], "duplicates": counts[DUPLICATE], "rejected": counts[REJECTED],
        "unproven": unproven, "results": results,
    }  # fmt: skip


def _id(text: str, name: str) -> Id:
    if not 0 < len(text) <= 256:
        raise HTTPException(422, f"{name} has {len(text)} characters, expected 1 to 256")
    return text
