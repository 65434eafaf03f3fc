"""A plug-in's routes: admitted as it says, closed where it says nothing, ended before the service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter, FastAPI

from recsys.config.part_configs import CompatConfig
from recsys.config.safety_config import AccessConfig
from recsys.config.system_config import Config, ServeConfig
from serving.http.added_routes import AddedRoutes
from serving.http.serving_metrics import ServingMetrics
from serving.service import Service
from tests.support.serving.service_harness import ADMIN, COMPAT, World, run

ENDED: list[bool] = []


def shop(added: AddedRoutes, service: Service, metrics: ServingMetrics) -> None:
    """A plug-in with a route for everybody, one for keys that recommend, and one without a scope."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        ENDED.append(service.ready)

    router = APIRouter(lifespan=lifespan)
    for path in ("/shop/health", "/shop/list", "/shop/other"):
        router.add_api_route(path, lambda: {"items": service.replica.catalogue.living.count})
    added.router.include_router(router)
    added.scopes += [("GET /shop/health$", ""), ("GET /shop/list$", "recommend")]
    added.lists.append("/shop/list")
    added.others.append("/shop/")
    added.health.append("/shop/health")


def test_the_routes_of_a_plug_in_are_admitted_as_it_says(tmp_path: Path) -> None:
    ENDED.clear()

    async def scenario(w: World) -> None:
        key = {"X-API-Key": await w.add_key("recommend")}
        asked = {
            path: [
                (await w.client.get(path, headers=headers)).status_code
                for headers in ({}, key, ADMIN, {"host": "evil.example"})
            ]
            for path in ("/shop/health", "/shop/list", "/shop/other", "/v1/status")
        }
        assert asked == {
            "/shop/health": [200, 200, 200, 200],
            "/shop/list": [401, 200, 200, 421],
            "/shop/other": [401, 403, 200, 421],
            "/v1/status": [401, 403, 200, 421],
        }
        assert (await w.client.get("/shop/list", headers=key)).json() == {"items": 60}

    serve = ServeConfig(routes=(f"{__name__}:shop",))
    run(World(tmp_path, serve=serve, access=AccessConfig(mode="keys", hosts=("ours.example",))), scenario)
    assert ENDED == [True], "the service still runs"


def test_the_description_names_the_refusals_of_each_added_route(tmp_path: Path) -> None:
    """The layers before the routes refuse calls of all of them."""
    refusals = {"401", "403", "408", "413", "421", "422", "429", "503", "507"}

    async def scenario(w: World) -> None:
        paths = (await w.client.get("/openapi.json")).json()["paths"]
        added = {
            f"{method} {path}": refusals - operation["responses"].keys()
            for path, operations in paths.items()
            for method, operation in operations.items()
            if not path.startswith("/v1/")
        }
        own = {"get /healthz", "get /readyz"}
        assert len(added) > 40 and {"get /shop/list", "post /rank/{model}"} < added.keys()
        assert {name for name, missing in added.items() if missing} <= own

    serve = ServeConfig(routes=(f"{__name__}:shop",))
    run(World(tmp_path, serve=serve, compat=COMPAT), scenario)


def takes_numbers(added: AddedRoutes, service: Service, metrics: ServingMetrics) -> None:
    """A plug-in whose route reads a body."""

    @added.router.post("/shop/numbers")
    async def numbers(body: dict[str, float]) -> dict[str, float]:
        return body


def test_a_route_of_a_plug_in_refuses_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        headers = ADMIN | {"content-type": "application/json"}
        taken = {
            number: (
                await w.client.post("/shop/numbers", headers=headers, content=f'{{"a": {number}}}')
            ).status_code
            for number in ("1.5", "1e999", "NaN")
        }
        assert taken == {"1.5": 200, "1e999": 400, "NaN": 400}

    serve = ServeConfig(routes=(f"{__name__}:takes_numbers",))
    run(World(tmp_path, serve=serve), scenario)


def test_the_configuration_names_the_plug_ins() -> None:
    assert Config().route_plugins == ()
    on = replace(Config(), serve=ServeConfig(routes=("shop",)), compat=CompatConfig(metarank=True))
    assert on.route_plugins == ("shop", "gorse_and_metarank")
