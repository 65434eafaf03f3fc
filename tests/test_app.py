"""The API over ASGI, with a log and sessions in memory: no Ray, no broker."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys.config import Config, ServeConfig
from recsys.events import Engagement, Impression, Item, decode, encode
from recsys.log import Append, LogUnavailable, MemoryLog
from recsys.open_log import create_topics
from recsys.records import CONTROL, EVENTS, ITEMS, Erasure, unpack
from serving.http_app import build_app
from serving.service import Service
from serving.session_loop import SessionLoop
from serving.session_store import MemoryFold, MemorySessions, StoreUnavailable

NOW_MS = 1_790_000_000_000
KEY = "the admin key"
ADMIN = {"X-Admin-Key": KEY}


class World:
    """A service with its log, its sessions and an HTTP client."""

    def __init__(self, folder: Path, items: int = 60, serve: ServeConfig | None = None) -> None:
        self.config = replace(Config(), state=str(folder), serve=serve or ServeConfig())
        self.log: MemoryLog = MemoryLog()
        create_topics(self.log, self.config)
        self.put(*(item(i) for i in range(items)))
        self.sessions = MemorySessions()
        self.now_ms = NOW_MS
        self.service = Service(self.config, self.log, self.sessions, lambda: self.now_ms)
        self.fold = SessionLoop(
            self.log, MemoryFold(self.sessions), self.service.features, now_ms=lambda: self.now_ms
        )
        self.client: httpx.AsyncClient

    def put(self, *items: Item) -> None:
        self.log.append(ITEMS, [Append(0, b"", encode(item)) for item in items])

    def events(self) -> list[Any]:
        return [
            decode(record.value)
            for p in range(self.log.partitions(EVENTS))
            for record in self.log.read(EVENTS, p, 0, 10_000)
        ]

    async def recommend(self, **body: Any) -> dict[str, Any]:
        answer = await self.client.post("/v1/recommend", json={"user_id": "u1"} | body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def written(self) -> None:
        """Waits until the writer has nothing left."""
        for _ in range(200):
            if not self.service.writer.kept_bytes:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the writer isn't done")


def item(i: int) -> Item:
    fields = {
        "author": f"a{i % 7}",
        "tags": [f"t{i % 5}", f"s{i % 3}"],
        "duration_ms": 10_000,
        "topic": f"t{i % 5}",
    }
    return Item(time_ms=NOW_MS - 1000 * i, item_id=f"v{i}", fields=fields)


def view(request_id: str, item_id: str, event_id: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "engagement",
        "time_ms": NOW_MS,
        "request_id": request_id,
        "user_id": "u1",
        "item_id": item_id,
        "kind": "view",
        "watch_ms": 1_000,
        "event_id": event_id,
    } | more


@asynccontextmanager
async def living(world: World) -> AsyncIterator[World]:
    app = build_app(world.service, lambda: KEY)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            world.client = client
            for _ in range(500):
                if world.service.reader.ready:
                    break
                await asyncio.sleep(0.01)
            yield world


def run(world: World, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with living(world):
            await scenario(world)

    asyncio.run(whole())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_recommend_answers_and_logs_the_impression(world: World) -> None:
    async def scenario(w: World) -> None:
        answer = await w.recommend(n=5, context={"surface": "feed"}, exclude_ids=["v1"])
        assert len(answer["items"]) == 5
        assert [i["rank"] for i in answer["items"]] == sorted(i["rank"] for i in answer["items"])
        assert all(0 < i["propensity"] <= 1 for i in answer["items"])
        assert "v1" not in {i["item_id"] for i in answer["items"]}
        assert answer["degraded"] == ["model"]
        assert answer["stamp"]["catalogue_offset"] == 60
        assert answer["took_ms"] > 0
        await w.written()
        [impression] = w.events()
        assert isinstance(impression, Impression)
        assert impression.request_id == answer["request_id"]
        assert [i.item_id for i in impression.items] == [i["item_id"] for i in answer["items"]]
        assert impression.features is not None and impression.stamp is not None

    run(world, scenario)


def test_candidates_are_ranked_as_given_and_explained(world: World) -> None:
    async def scenario(w: World) -> None:
        answer = await w.recommend(n=10, candidate_ids=["v3", "v4", "nowhere"], explain=True)
        assert {i["item_id"] for i in answer["items"]} == {"v3", "v4"}
        assert all("reasons" in i for i in answer["items"])

    run(world, scenario)


def test_a_view_reaches_the_session_and_the_next_answer(world: World) -> None:
    async def scenario(w: World) -> None:
        first = await w.recommend(n=3)
        seen = first["items"][0]["item_id"]
        sent = [view(first["request_id"], seen, "e1", watch_ms=9_000)]
        answer = await w.client.post("/v1/events", json={"events": sent})
        assert answer.status_code == 202
        assert answer.json() == {
            "accepted": 1, "duplicates": 0, "rejected": 0,
            "results": [{"index": 0, "status": "accepted"}],
        }  # fmt: skip
        kinds = [e.kind for e in w.events() if isinstance(e, Engagement)]
        assert kinds == ["long_view", "view"]
        await w.written()
        while w.fold.turn():
            pass
        session = (await w.client.get("/v1/sessions/u1")).json()
        assert session["events"] == 2 and session["offset"] == 3
        assert session["recent"][0] == {
            "item_id": seen, "time_ms": NOW_MS, "watch_ms": 9_000, "did": ["long_view"],
        }  # fmt: skip
        assert {topic["tag"] for topic in session["topics"]} == set(
            first["items"][0]["fields"]["tags"]
        )
        assert all(topic["weight"] > 0 for topic in session["topics"])
        second = await w.recommend(n=50)
        assert seen not in {i["item_id"] for i in second["items"]}
        assert second["stamp"]["session_offset"] == 3
        await asyncio.sleep(0.03)
        status = (await w.client.get("/v1/status")).json()
        assert 0 < status["click_to_session_p95_ms"] < 5_000

    run(world, scenario)


def test_events_are_judged_one_by_one(world: World) -> None:
    async def scenario(w: World) -> None:
        events = [
            view("r", "v1", "e1"),
            view("r", "v1", "e1"),
            view("r", "v1", "e2", kind="stare"),
            {
                "type": "impression",
                "time_ms": NOW_MS,
                "request_id": "r",
                "user_id": "u",
                "items": [],
            },
            view("r", "v1", "e3", watch_ms=2**70),
            view("r", "v2", "e4", user_id=7),
            "text",
            None,
        ]
        answer = (await w.client.post("/v1/events", json={"events": events})).json()
        expected = ["accepted", "duplicate", "rejected", "rejected", "rejected", "accepted"]
        assert [r["status"] for r in answer["results"]] == [*expected, "rejected", "rejected"]
        assert answer["results"][2]["error"]["field"] == "kind"
        assert "written by the server" in answer["results"][3]["error"]["expected"]
        assert len(w.events()) == 2
        again = (await w.client.post("/v1/events", json={"events": events[:1]})).json()
        assert again["duplicates"] == 1

    run(world, scenario)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (b'"watch_ms": NaN', "watch_ms"),
        (b'"watch_ms": 1e999', "watch_ms"),
        (b'"note": "\\ud800"', "note"),
        (b'"note": ' + b"[" * 3000 + b"]" * 3000, "event"),
    ],
)
def test_a_bad_event_in_a_body_costs_itself_alone(world: World, bad: bytes, field: str) -> None:
    async def scenario(w: World) -> None:
        good = [json.dumps(view("r", "w1", f"good-{i}")).encode() for i in range(2)]
        wrong = json.dumps(view("r", "w1", "bad")).encode()[:-1] + b", " + bad + b"}"
        body = b'{"events": [' + b", ".join([good[0], wrong, good[1]]) + b"]}"
        response = await w.client.post(
            "/v1/events", content=body, headers={"content-type": "application/json"}
        )
        assert response.status_code == 202, response.text
        results = response.json()["results"]
        assert [r["status"] for r in results] == ["accepted", "rejected", "accepted"]
        assert results[1]["error"]["field"] == field

    run(world, scenario)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/recommend", b"{", 400),
        ("/v1/recommend", b'{"user_id": NaN}', 400),
        (
            "/v1/recommend",
            b'{"user_id": "u", "context": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001,
            400,
        ),
        ("/v1/recommend", b'{"user_id": "u", "context": ' + b'{"a":' * 20 + b"1" + b"}" * 21, 422),
        ("/v1/recommend", b'{"user_id": "u", "context": {"a": 1' + b"0" * 30 + b"}}", 422),
        ("/v1/recommend", b"{}", 422),
        ("/v1/recommend", b'{"user_id": "u", "n": 0}', 422),
        ("/v1/recommend", b'{"user_id": "u", "n": 101}', 422),
        ("/v1/recommend", b'{"user_id": "u", "n": "5"}', 422),
        ("/v1/recommend", b'{"user_id": ""}', 422),
        ("/v1/recommend", b'{"user_id": true}', 422),
        ("/v1/recommend", b'{"user_id": 1.5}', 422),
        ("/v1/recommend", b'{"user_id": 99999999999999999999}', 422),
        ("/v1/recommend", b'{"user_id": "u", "surprise": 1}', 422),
        ("/v1/recommend", b"[]", 422),
        ("/v1/recommend", b'{"user_id": "\xff"}', 400),
        ("/v1/events", b'{"events": []}', 422),
        ("/v1/events", b'{"events": {}}', 422),
        ("/v1/events", b'{"events": [' + b",".join([b"1"] * 501) + b"]}", 422),
        ("/v1/events", b'{"events": ["' + b"x" * 1_000_001 + b'"]}', 413),
        ("/v1/recommend", b"", 422),
        ("/v1/nothing", b"{}", 404),
    ],
)
def test_a_wrong_body_is_refused_clearly(world: World, path: str, body: bytes, status: int) -> None:
    async def scenario(w: World) -> None:
        headers = {"content-type": "application/json"}
        answer = await w.client.post(path, content=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]
        if status == 422:
            assert answer.json()["details"][0]["expected"]

    run(world, scenario)


def test_text_that_is_no_unicode_is_refused(world: World) -> None:
    async def scenario(w: World) -> None:
        headers = {"content-type": "application/json"}
        for path, body in {
            "/v1/recommend": b'{"user_id": "u", "context": {"a": "\\ud800"}}',
            "/v1/events": b'{"events": [{"type": "engagement", "time_ms": 1790000000000, '
            b'"request_id": "\\ud800", "user_id": "u", "item_id": "v", "kind": "view"}]}',
        }.items():
            answer = await w.client.post(path, content=body, headers=headers)
            assert answer.status_code in (202, 400, 422), answer.text
            if answer.status_code == 202:
                assert answer.json()["rejected"] == 1

    run(world, scenario)


def test_only_the_admin_changes_items_and_users(world: World) -> None:
    async def scenario(w: World) -> None:
        new = {"items": [{"item_id": "new", "fields": {"author": "a1", "tags": ["t1"]}}]}
        assert (await w.client.post("/v1/items", json=new)).status_code == 401
        wrong = {"X-Admin-Key": "wrong"}
        assert (await w.client.post("/v1/items", json=new, headers=wrong)).status_code == 403
        assert (await w.client.delete("/v1/items/v3", headers=wrong)).status_code == 403
        assert (await w.client.delete("/v1/users/u1")).status_code == 401
        assert (await w.client.post("/v1/users", json={"users": []})).status_code == 401
        assert w.log.end(ITEMS, 0) == 60 and w.events() == []
        answer = await w.client.post("/v1/items", json=new, headers=ADMIN)
        assert answer.status_code == 202 and answer.json()["accepted"] == 1
        assert (await w.client.delete("/v1/items/v3", headers=ADMIN)).status_code == 202
        for _ in range(200):
            if w.service.replica.catalogue_offset == 62:
                break
            await asyncio.sleep(0.01)
        found = await w.recommend(n=10, candidate_ids=["new", "v3", "v4"])
        assert {i["item_id"] for i in found["items"]} == {"new", "v4"}

    run(world, scenario)


def test_an_empty_admin_key_opens_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        app = build_app(world.service, lambda: "")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.delete("/v1/users/u1", headers={"X-Admin-Key": ""})
            assert answer.status_code == 403

    asyncio.run(scenario())


def test_a_user_is_forgotten(world: World) -> None:
    async def scenario(w: World) -> None:
        users = {"users": [{"user_id": "u1", "fields": {"country": "NZ"}}]}
        assert (await w.client.post("/v1/users", json=users, headers=ADMIN)).status_code == 202
        w.fold.turn()
        assert "u1" in w.sessions.blobs
        assert (await w.client.delete("/v1/users/u1", headers=ADMIN)).status_code == 202
        [erasure] = [unpack(r.value, Erasure) for r in w.log.read(CONTROL, 0, 0)]
        assert erasure.user_id == "u1"
        w.fold.turn()
        assert "u1" not in w.sessions.blobs

    run(world, scenario)


class Slow(MemorySessions):
    async def get(self, user_id: Any) -> bytes | None:
        await asyncio.sleep(10)
        return None


class Broken(MemorySessions):
    async def get(self, user_id: Any) -> bytes | None:
        raise StoreUnavailable("gone")


@pytest.mark.parametrize("store", [Slow, Broken])
def test_without_sessions_the_answer_is_degraded(world: World, store: type[MemorySessions]) -> None:
    world.service.sessions.sessions = store()

    async def scenario(w: World) -> None:
        for _ in range(5):
            answer = await w.recommend(n=3)
            assert answer["degraded"] == ["model", "session"]
            assert len(answer["items"]) == 3 and answer["took_ms"] < 200
        await w.written()
        assert all(e.degraded == ["model", "session"] for e in w.events())
        assert (await w.client.get("/v1/sessions/u1")).status_code == 503

    run(world, scenario)


def test_without_a_log_events_are_refused_and_impressions_kept(world: World) -> None:
    append = world.log.append

    def away(topic: str, records: Any) -> list[int]:
        raise LogUnavailable("disk full")

    async def scenario(w: World) -> None:
        world.log.append = away  # type: ignore[method-assign]
        answer = await w.recommend(n=3)
        refused = await w.client.post("/v1/events", json={"events": [view("r", "v1", "e1")]})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        world.log.append = append  # type: ignore[method-assign]
        await w.written()
        assert [e.request_id for e in w.events()] == [answer["request_id"]]
        await asyncio.sleep(1.1)
        again = await w.client.post("/v1/events", json={"events": [view("r", "v1", "e1")]})
        assert again.json()["accepted"] == 1  # what was never committed isn't a repeat

    run(world, scenario)


def test_too_many_at_a_time_are_turned_away(tmp_path: Path) -> None:
    world = World(tmp_path, serve=ServeConfig(max_ongoing=2))
    world.service.sessions.sessions = Slow()

    async def scenario(w: World) -> None:
        asked = [w.client.post("/v1/recommend", json={"user_id": f"u{i}"}) for i in range(6)]
        answers = await asyncio.gather(*asked)
        statuses = sorted(a.status_code for a in answers)
        assert statuses == [200, 200, 503, 503, 503, 503]
        turned = next(a for a in answers if a.status_code == 503)
        assert turned.headers["retry-after"] == "1" and turned.json()["error"]

    run(world, scenario)


def test_health_readiness_metrics_page_and_docs(world: World) -> None:
    async def scenario(w: World) -> None:
        await w.recommend()
        assert (await w.client.get("/healthz")).status_code == 200
        assert (await w.client.get("/readyz")).json()["ready"] is True
        text = (await w.client.get("/metrics")).text
        assert 'recsys_requests_total{route="/v1/recommend",status="200"} 1.0' in text
        assert "recsys_items 60.0" in text
        assert "<!doctype html>" in (await w.client.get("/")).text
        assert (await w.client.get("/static/main.js")).status_code == 200
        schema = (await w.client.get("/openapi.json")).json()
        assert {"/v1/recommend", "/v1/events", "/v1/status"} <= schema["paths"].keys()
        body = schema["components"]["schemas"]["RecommendIn"]
        assert body["examples"][0]["user_id"] == "u42"
        assert (await w.client.get("/docs")).status_code == 200

    run(world, scenario)


def test_not_ready_is_said_before_the_log_is_read(world: World) -> None:
    async def scenario(w: World) -> None:
        w.service.reader.ready = False
        assert (await w.client.get("/readyz")).status_code == 503
        answer = await w.client.post("/v1/recommend", json={"user_id": "u1"})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"

    run(world, scenario)
