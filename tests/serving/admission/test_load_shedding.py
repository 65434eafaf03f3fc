"""The door of a replica over ASGI: what is refused, how it is told and counted, and that it costs little."""

import asyncio
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config.system_config import ServeConfig
from serving.admission.admission import Limit, TokenBuckets
from serving.admission.load_shedding import ARRIVED_S, LoadShedder
from serving.admission.whole_body import BodyReceiver, BodyRoom
from tests.support.serving.service_harness import Slow, World, compat_routes, living, view


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


def gate_of(
    inner: Inner, metrics: Counts, lists: Limit, events: Limit, others: Limit, rate: float = 0.0
) -> LoadShedder:
    bodies = BodyReceiver(BodyRoom(4_000_000), timeout_s=60)
    clients = TokenBuckets(rate)
    return LoadShedder(inner, metrics, lists, events, others, clients, bodies, address_of, compat_routes())


def address_of(scope: Any) -> str:
    return str(dict(scope["headers"]).get(b"x-from", b"").decode())


def client_of(gate: LoadShedder) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=gate, client=("127.0.0.1", 5))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def test_each_kind_has_its_own_limit_and_health_always_passes() -> None:
    inner, metrics = Inner(), Counts()
    limits = Limit(1), Limit(1), Limit(1)
    client = client_of(gate_of(inner, metrics, *limits))
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
    assert refused == {(name, "ongoing"): 1 for name in ("/v1/recommend", "/v1/events", "other")}


@pytest.mark.parametrize("name", ["rank", "popular", "latest", "trending", "items/a/b/similar"])
async def test_every_route_that_answers_a_list_has_the_limit_of_lists(name: str) -> None:
    metrics = Counts()
    client = client_of(gate_of(Inner(), metrics, Limit(0), Limit(9), Limit(9)))
    assert (await client.get(f"/v1/{name}")).status_code == 503
    assert metrics.counts == {("/v1/recommend", "ongoing"): 1}


async def test_other_recommenders_clients_share_the_limits_and_their_health_passes() -> None:
    inner, metrics = Inner(), Counts()
    inner.go.set()
    client = client_of(gate_of(inner, metrics, Limit(0), Limit(0), Limit(0)))
    kinds = {
        "/v1/recommend": ["/api/recommend/bob", "/api/session/recommend", "/rank/x", "/recommend/x"],
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


async def test_a_caller_with_more_than_its_share_is_told_429_and_others_pass() -> None:
    inner, metrics = Inner(), Counts()
    inner.go.set()
    gate = gate_of(inner, metrics, Limit(9), Limit(9), Limit(9), rate=1.0)
    client = client_of(gate)

    async def ask(address: str) -> int:
        return (await client.get("/v1/events", headers={"x-from": address})).status_code

    assert [await ask("192.0.2.1"), await ask("192.0.2.1")] == [200, 429]
    assert await ask("192.0.2.2") == 200
    assert (await client.get("/healthz")).status_code == 200
    assert metrics.counts["/v1/events", "client"] == 1


class Upload:
    """A request whose body comes when it is told."""

    def __init__(self, gate: LoadShedder, path: str, source: str = "") -> None:
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.statuses: list[int] = []
        headers = [(b"x-from", source.encode()), (b"content-length", b"100")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        self.task = asyncio.ensure_future(gate(scope, self.parts.get, self._send))

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])

    def put(self, body: bytes, more: bool) -> None:
        self.parts.put_nowait({"type": "http.request", "body": body, "more_body": more})


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", ["/v1/recommend", "/v1/events", "/rank/x"])
async def test_slow_uploads_hold_no_place(path: str) -> None:
    inner, limits = Inner(), (Limit(2), Limit(2), Limit(2))
    inner.go.set()
    gate = gate_of(inner, Counts(), *limits)
    slow = [Upload(gate, path, "slow") for _ in range(200)]
    for upload in slow:
        upload.put(b"{", more=True)
    await turns()
    assert [limit.inside for limit in limits] == [0, 0, 0]
    honest = Upload(gate, path, "honest")
    honest.put(b"{}", more=False)
    await honest.task
    assert honest.statuses == [200]
    for upload in slow:
        upload.task.cancel()
    await asyncio.gather(*(upload.task for upload in slow), return_exceptions=True)


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 3))
def test_those_admitted_are_always_complete_bodies(steps: list[int], most: int) -> None:
    """A step sends the next third of a body, or answers (5). Complete bodies are admitted up to the limit."""

    async def scenario() -> None:
        inner, limit = Inner(), Limit(most)
        gate = gate_of(inner, Counts(), limit, Limit(9), Limit(9))
        uploads: dict[int, tuple[Upload, int]] = {}
        complete = 0
        for name in steps:
            if name == 5:
                inner.go.set()
                await turns()
                inner.go.clear()
                complete = 0
                continue
            upload, parts = uploads.get(name, (None, 0))
            if upload is None:
                if complete >= most:
                    continue  # it would be refused before its body
                upload = Upload(gate, "/v1/recommend")
            upload.put(b"x", more=parts < 2)
            uploads[name] = upload, parts + 1
            if parts == 2:
                del uploads[name]
                complete = min(complete + 1, most)
            await turns()
            assert limit.inside == complete
        for upload, _ in uploads.values():
            upload.task.cancel()
        inner.go.set()
        await turns()

    asyncio.run(scenario())


async def test_a_body_that_completes_when_all_places_are_taken_is_refused() -> None:
    inner, limit = Inner(), Limit(1)
    gate = gate_of(inner, Counts(), limit, Limit(1), Limit(1))
    uploads = [Upload(gate, "/v1/recommend") for _ in range(3)]
    await turns()
    for upload in uploads:
        upload.put(b"{}", more=False)
    await turns()
    assert limit.inside == 1 and [u.statuses for u in uploads] == [[], [503], [503]]
    inner.go.set()
    await uploads[0].task
    assert uploads[0].statuses == [200] and limit.inside == 0


async def test_the_time_of_a_request_counts_from_its_complete_body() -> None:
    inner = Inner()
    inner.go.set()
    upload = Upload(gate_of(inner, Counts(), Limit(1), Limit(1), Limit(1)), "/v1/recommend")
    await asyncio.sleep(0.02)
    complete_s = time.monotonic()
    upload.put(b"{}", more=False)
    await upload.task
    assert inner.arrived[0] is not None and inner.arrived[0] >= complete_s


async def test_a_body_that_is_refused_ends_its_connection() -> None:
    inner, metrics = Inner(), Counts()
    client = client_of(gate_of(inner, metrics, Limit(1), Limit(1), Limit(1)))
    answer = await client.post("/v1/events", content=b"x" * 1_000_001)
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert metrics.counts["/v1/events", "body"] == 1 and not inner.arrived


@pytest.mark.parametrize("path", ["/v1/users/alice%0A", "/api/user/a%0Ab", "/x%00", "/%7F"])
async def test_a_path_with_a_control_character_reaches_no_route(path: str) -> None:
    inner, metrics = Inner(), Counts()
    inner.go.set()
    client = client_of(gate_of(inner, metrics, Limit(1), Limit(1), Limit(1)))
    answer = await client.delete(path)
    assert answer.status_code == 422 and "POST /v1/users/erase" in answer.json()["error"]
    assert metrics.counts["other", "path"] == 1 and not inner.arrived


async def test_refusals_stand_in_the_metrics_by_reason_and_events_are_taken_meanwhile(tmp_path: Path) -> None:
    world = World(tmp_path, serve=ServeConfig(max_ongoing=2))

    async with living(world) as w:
        first = await w.recommend(n=1)
        w.service.sessions.store.sessions = Slow()
        asked = [w.client.post("/v1/recommend", json={"user_id": f"u{i}"}) for i in range(6)]
        lists = asyncio.gather(*asked)
        await asyncio.sleep(0.005)
        event = view(first["request_id"], first["items"][0]["item_id"], "e1")
        taken = await w.client.post("/v1/events", json={"events": [event]})
        assert taken.status_code == 202
        assert sorted(a.status_code for a in await lists) == [200, 200, 503, 503, 503, 503]
        told = (await w.client.get("/metrics")).text
        assert 'recsys_refused_total{reason="ongoing",route="/v1/recommend"} 4.0' in told


async def test_a_request_whose_time_is_up_is_answered_with_less(tmp_path: Path) -> None:
    hurried = replace(ServeConfig(), deadline_ms=1.0)
    world = World(tmp_path, items=300, serve=hurried)

    async with living(world) as w:
        answer = await w.recommend(n=5)
        assert len(answer["items"]) == 5
        assert "retrieval:popular" in answer["degraded"]
