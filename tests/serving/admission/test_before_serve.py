"""The layer before Serve: what it refuses, and what Serve is told about each request, whatever its client
says."""

import asyncio
import importlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.config.safety_config import AccessConfig
from serving.admission.before_serve import CALLBACK, GATES, BeforeServe
from serving.http_app import build_app
from tests.support.serving.service_harness import World


@pytest.fixture(autouse=True)
def no_gates() -> None:
    GATES.clear()  # of another test's app


def test_serve_is_told_last_so_that_a_client_has_no_say() -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    module, _, name = CALLBACK.partition(":")
    [middleware] = getattr(importlib.import_module(module), name)()
    wrapped = middleware.cls(app, *middleware.args, **middleware.kwargs)
    theirs = [(b"x-request-timeout-seconds", b"9"), (b"x-request-disconnect-disabled", b"?0")]
    for scope in ({"type": "http", "headers": theirs}, {"type": "lifespan"}):
        asyncio.run(wrapped(scope, None, None))
    assert dict(seen[0]["headers"]) == {
        b"x-request-timeout-seconds": b"0",
        b"x-request-disconnect-disabled": b"?1",
    }
    assert seen[1] == {"type": "lifespan"} and len(theirs) == 2


def test_a_list_is_refused_by_the_limit_before_serve_and_the_app(tmp_path: Path) -> None:
    world, inner = World(tmp_path), list[str]()
    metrics = build_app(world.service, lambda: "").state.metrics
    world.service.admission.inside = world.config.serve.max_ongoing

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inner.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def scenario() -> None:
        transport = httpx.ASGITransport(app=BeforeServe(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in range(2):
                refused = await client.post("/v1/recommend", content=b"{")
                assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
                assert "at a time" in refused.json()["error"]
            assert (await client.post("/v1/events", content=b"{")).status_code == 200
            world.service.admission.inside = 0
            assert (await client.post("/v1/recommend", content=b"{")).status_code == 200

    asyncio.run(scenario())
    assert inner == ["/v1/events", "/v1/recommend"]
    refused = metrics.registry.get_sample_value
    assert refused("recsys_refused_total", {"route": "/v1/recommend", "reason": "ongoing"}) == 2


def test_refusals_that_other_origins_may_read_come_from_the_app(tmp_path: Path) -> None:
    access = AccessConfig(mode="keys", origins=("https://app.example.org",))
    build_app(World(tmp_path, access=access).service, lambda: "")
    assert GATES == []
