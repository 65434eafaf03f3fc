"""HTTP API of a replica: routes that validate, call the service and encode. No state of its own.

Bodies hold at most 1 MB; errors name the field, the value and what was expected; a temporary refusal is 503
with Retry-After. The app also serves the viewers' page, so that the page has one origin.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, Response
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from starlette.types import Scope

from recsys import plugins
from serving.access.access_layer import AccessLayer
from serving.access.audit import AuditTrail
from serving.access.caller import network_of
from serving.admission.admission import EVENT_CALLS, Limit, TokenBuckets
from serving.admission.before_serve import GATES
from serving.admission.load_shedding import LoadShedder, lists_gate
from serving.admission.whole_body import BodyReceiver, BodyRoom
from serving.http.added_routes import AddedRoutes, load_routes
from serving.http.admin_routes import add_admin_routes
from serving.http.list_routes import add_list_routes, add_ranking_routes
from serving.http.problems import PROBLEMS, add_errors
from serving.http.serving_metrics import ServingMetrics
from serving.http.strict_json import StrictRoute, json_response
from serving.http.viewer_routes import add_viewer_routes
from serving.service import Service

_READY_POLL_S: Final = 0.5


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
    added, trail = load_routes(service, metrics), AuditTrail(service.callers.folder, name)
    _add_layers(app, service, admin_key, metrics, added, trail)
    add_errors(app)
    add_ranking_routes(app, service, metrics)
    add_viewer_routes(app, service, metrics)
    add_list_routes(app, service, metrics)
    add_admin_routes(app, service)
    _add_health_routes(app, service, metrics)
    app.include_router(added.router, responses=PROBLEMS)
    _add_pages(app)
    _describe_keys(app)
    return app


def _add_layers(
    app: FastAPI, service: Service, admin_key: Callable[[], str], metrics: ServingMetrics,
    added: AddedRoutes, trail: AuditTrail,
) -> None:  # fmt: skip
    """Adds what a request passes before its route, the innermost first: limits of load, keys, origins."""
    serve, doors = service.config.serve, service.config.doors
    control = service.callers.control(service.live.control.keyring, admin_key, added.scopes, added.health)
    app.add_middleware(
        LoadShedder, metrics=metrics, lists=service.admission, events=Limit(EVENT_CALLS),
        others=Limit(serve.max_ongoing), clients=TokenBuckets(serve.client_rate),
        bodies=BodyReceiver(BodyRoom(), doors.body_s),
        address=lambda scope: network_of(control.address(scope), 32, 64), added=added,
    )  # fmt: skip
    # A page of another origin reads a refusal only by the headers of the layer for origins.
    GATES[:] = [] if service.config.access.origins else [lists_gate(service.admission, metrics)]
    now_ms = service.live.timer_ms
    app.add_middleware(
        AccessLayer, control=control, trail=trail, metrics=metrics, now_ms=now_ms,
        has_route=partial(_has_route, app),
    )  # fmt: skip
    if origins := service.config.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-api-key"],
            expose_headers=["date", "retry-after"],
        )


def _has_route(app: FastAPI, scope: Scope) -> bool:
    asked = dict(scope, method="GET") if scope["method"] == "HEAD" else scope
    return any(route.matches(asked)[0] == Match.FULL for route in app.routes)


async def _call_once_ready(service: Service, on_ready: Callable[[], None]) -> None:
    while not service.ready:
        await asyncio.sleep(_READY_POLL_S)
    await asyncio.to_thread(on_ready)


def _add_health_routes(app: FastAPI, service: Service, metrics: ServingMetrics) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "Still catching up, or cut off"}})
    async def readyz() -> Response:
        """Whether the replica has caught up with the log and still reaches it; ``failure`` says why not."""
        unready = service.unready
        live = service.live
        body = {"ready": not unready, "lag": live.followers.lag, "failure": unready}
        body |= {"catching_up": live.folds.catching_up}
        return json_response(body, 503 if unready else 200)

    @app.get("/metrics", response_class=Response, responses=PROBLEMS)
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
