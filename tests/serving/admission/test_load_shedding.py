"""The door of a replica over ASGI: what is refused, how it is told and counted, and that it costs little."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from recsys.config.system_config import ServeConfig
from serving.admission.admission import Limit, TokenBuckets
from serving.admission.load_shedding import ARRIVED_S, LoadShedder
from tests.support.service_harness import Slow, World, run, view


class Counts:
    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Any]] = Counter()

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        self.counts[route, status] += 1

    def count_refused(self, route: str, reason: str) -> None:
        self.counts[route, reason] += 1


class Inner:
    """An app that answers once it is let."""

    def __init__(self) -> None:
        self.go, self.bodies, self.arrived = asyncio.Event(), 0, list[float | None]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.go.wait()
        self.arrived.append(ARRIVED_S.get())
        await receive()
        self.bodies += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def client_of(gate: LoadShedder) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=gate, client=("127.0.0.1", 5))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def test_each_kind_has_its_own_limit_and_health_always_passes() -> None:
    async def scenario() -> None:
        inner, metrics = Inner(), Counts()
        limits = [Limit(1), Limit(1), Limit(1)]
        client = client_of(LoadShedder(inner, metrics, *limits, TokenBuckets(0.0)))
        kinds = ["/v1/recommend", "/v1/events", "/v1/sessions/u", "/metrics"]
        waiting = [asyncio.ensure_future(client.get(path)) for path in kinds]
        await asyncio.sleep(0.01)
        for path in kinds[:3]:
            answer = await client.post(path, content=b"x" * 100_000)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert "more than 1" in answer.json()["error"]
        assert inner.bodies == 0  # none was read to be refused
        health = asyncio.ensure_future(client.get("/healthz"))
        inner.go.set()
        answers = await asyncio.gather(*waiting, health)
        assert [a.status_code for a in answers] == [200] * 5
        assert [limit.inside for limit in limits] == [0, 0, 0]
        assert sum(at is not None for at in inner.arrived) == 3 and ARRIVED_S.get() is None
        refused = {key: n for key, n in metrics.counts.items() if key[1] == "ongoing"}
        assert refused == {
            (name, "ongoing"): 1 for name in ("/v1/recommend", "/v1/events", "other")
        }

    asyncio.run(scenario())


def test_other_recommenders_clients_share_the_limits_and_their_health_passes() -> None:
    async def scenario() -> None:
        inner, metrics = Inner(), Counts()
        inner.go.set()
        client = client_of(
            LoadShedder(inner, metrics, Limit(0), Limit(0), Limit(0), TokenBuckets(0.0))
        )
        kinds = {
            "/v1/recommend": [
                "/api/recommend/bob",
                "/api/session/recommend",
                "/rank/x",
                "/recommend/x",
            ],
            "/v1/events": ["/api/feedback", "/feedback"],
            "other": ["/api/items", "/api/user/bob", "/api/feedback/star", "/train/x", "/flush"],
        }
        for paths in kinds.values():
            for path in paths:
                assert (await client.get(path)).status_code == 503, path
        for path in ("/api/health/live", "/api/health/ready", "/health", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
        refused = {key: n for key, n in metrics.counts.items() if key[1] == "ongoing"}
        assert refused == {(name, "ongoing"): len(paths) for name, paths in kinds.items()}

    asyncio.run(scenario())


def test_a_caller_with_more_than_its_share_is_told_429_and_others_pass() -> None:
    async def scenario() -> None:
        inner, metrics = Inner(), Counts()
        inner.go.set()
        gate = LoadShedder(inner, metrics, Limit(9), Limit(9), Limit(9), TokenBuckets(1.0))
        client = client_of(gate)

        async def ask(seen_by_proxy: str, claimed: str = "") -> int:
            told = f"{claimed}, {seen_by_proxy}" if claimed else seen_by_proxy
            answer = await client.get("/v1/events", headers={"x-forwarded-for": told})
            return answer.status_code

        assert [await ask("192.0.2.1"), await ask("192.0.2.1")] == [200, 429]
        assert await ask("192.0.2.1", claimed="192.0.2.99") == 429  # its own word counts nothing
        assert await ask("192.0.2.2") == 200
        assert (await client.get("/healthz")).status_code == 200
        assert metrics.counts["/v1/events", "client"] == 2

    asyncio.run(scenario())


def test_refusals_stand_in_the_metrics_by_reason_and_events_are_taken_meanwhile(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, serve=ServeConfig(max_ongoing=2))

    async def scenario(w: World) -> None:
        first = await w.recommend(n=1)
        w.service.sessions.sessions = Slow()
        asked = [w.client.post("/v1/recommend", json={"user_id": f"u{i}"}) for i in range(6)]
        lists = asyncio.gather(*asked)
        await asyncio.sleep(0.005)
        event = view(first["request_id"], first["items"][0]["item_id"], "e1")
        taken = await w.client.post("/v1/events", json={"events": [event]})
        assert taken.status_code == 202
        assert sorted(a.status_code for a in await lists) == [200, 200, 503, 503, 503, 503]
        told = (await w.client.get("/metrics")).text
        assert 'recsys_refused_total{reason="ongoing",route="/v1/recommend"} 4.0' in told

    run(world, scenario)


def test_a_request_whose_time_is_up_is_answered_with_less(tmp_path: Path) -> None:
    hurried = replace(ServeConfig(), deadline_ms=1.0)
    world = World(tmp_path, items=300, serve=hurried)

    async def scenario(w: World) -> None:
        answer = await w.recommend(n=5)
        assert len(answer["items"]) == 5
        assert "retrieval:popular" in answer["degraded"]

    run(world, scenario)
