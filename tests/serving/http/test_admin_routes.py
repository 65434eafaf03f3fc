"""Items, users and erasure over ASGI: for the admin alone."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from experiments.assignment.policy import Policies
from recsys.events.control_records import Erasure
from recsys.events.event_types import Engagement, encode
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EVENTS, ITEMS, unpack
from recsys.log.protocol import Append
from serving.http_app import build_app
from tests.support.serving.service_harness import ADMIN, NOW_MS, World, living, view


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_only_the_admin_changes_items_and_users(world: World) -> None:
    async with living(world) as w:
        new = {"items": [{"item_id": "new", "fields": {"author": "a1", "tags": ["t1"]}}]}
        assert (await w.client.post("/v1/items", json=new)).status_code == 401
        wrong = {"X-Admin-Key": "wrong"}
        assert (await w.client.post("/v1/items", json=new, headers=wrong)).status_code == 401
        assert (await w.client.delete("/v1/items/v3", headers=wrong)).status_code == 401
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


async def read_by_replica(w: World) -> None:
    for _ in range(500):
        if w.service.replica.catalogue_offset == w.log.end(ITEMS, 0):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the replica doesn't read the items")


async def test_a_declared_field_of_another_type_is_named(world: World) -> None:
    async with living(world) as w:
        good = {"item_id": 7, "fields": {"author": "a1", "duration_ms": None, "more": {"a": 1}}}
        items = [good, {"item_id": "8", "fields": {"duration_ms": "long"}},
                 {"item_id": "9", "fields": {"tags": [{"a": 1}]}}]  # fmt: skip
        answer = await w.client.post("/v1/items", json={"items": items}, headers=ADMIN)
        results = answer.json()["results"]
        assert [result["status"] for result in results] == ["accepted", "rejected", "rejected"]
        assert results[1]["error"] == {
            "field": "fields.duration_ms",
            "value": '"long"',
            "expected": "a number",
        }
        assert results[2]["error"]["field"] == "fields.tags" and w.log.end(ITEMS, 0) == 61
        user = {"users": [{"user_id": "u1", "fields": {"country": {"code": "NZ"}}}]}
        answer = await w.client.post("/v1/users", json=user, headers=ADMIN)
        assert answer.json()["results"][0]["error"]["field"] == "fields.country"
        body = {"user_id": "u1", "context": {"surface": {"a": 1}}}
        refused = await w.client.post("/v1/recommend", json=body)
        assert refused.status_code == 422
        assert refused.json()["details"][0]["field"] == "context.surface"


async def test_an_item_or_profile_that_is_sent_again_changes_nothing(world: World) -> None:
    async with living(world) as w:
        items = {"items": [{"item_id": 7, "fields": {"author": "a1", "tags": list("abcdef")}}]}
        users = {"users": [{"user_id": 5, "fields": {"country": "NZ"}}]}
        states, profiles = [], []
        for _ in range(3):
            assert (await w.client.post("/v1/items", json=items, headers=ADMIN)).json()["accepted"] == 1
            assert (await w.client.post("/v1/users", json=users, headers=ADMIN)).json()["accepted"] == 1
            await read_by_replica(w)
            while w.fold.turn():
                pass
            w.now_ms += 60_000
            state = (await w.client.get("/v1/inspect/items/7", headers=ADMIN)).json()
            catalogue = w.service.replica.catalogue
            index = catalogue.index_of(7)
            assert index is not None
            states.append((state, len(catalogue), int(catalogue.published_ms[index])))
            profiles.append((await w.service.sessions.of(5)).profile)
        assert states[0] == states[1] == states[2] and states[0][0]["item_id"] == 7
        assert profiles[0] and profiles[0] == profiles[1] == profiles[2]


async def test_an_inspected_user_has_the_policy_that_the_feed_answers_by(world: World) -> None:
    world.config = replace(world.config, surfaces={"feed": {"explore": 0.5}})
    world.restart()

    async with living(world) as w:
        state = (await w.client.get("/v1/inspect/users/u1", headers=ADMIN)).json()
        assert state["policy"] == state["answer"]["stamp"]["policy"]
        assert state["policy"] != Policies(w.config.policy).resolve("u1").digest


async def test_an_empty_admin_key_opens_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    app = build_app(world.service, lambda: "")
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.delete("/v1/users/u1", headers={"X-Admin-Key": ""})
        assert answer.status_code == 401


async def test_a_user_is_forgotten(world: World) -> None:
    async with living(world) as w:
        users = {"users": [{"user_id": "u1", "fields": {"country": "NZ"}}]}
        assert (await w.client.post("/v1/users", json=users, headers=ADMIN)).status_code == 202
        w.fold.turn()
        assert "u1" in w.sessions.blobs
        assert (await w.client.delete("/v1/users/u1", headers=ADMIN)).status_code == 202
        [erasure] = [unpack(r.value, Erasure) for r in w.log.read(CONTROL, 0, 0)]
        assert erasure.user_id == "u1"
        w.fold.turn()
        assert "u1" not in w.sessions.blobs


async def test_an_id_with_a_newline_is_erased_by_a_body_and_no_path_means_another_user(world: World) -> None:
    """Such an id comes from an older log. A path of alice and a newline once meant alice."""
    async with living(world) as w:
        for user_id in ("alice", "alice\n", "a\nb"):
            event = Engagement(time_ms=NOW_MS, request_id="r", user_id=user_id, item_id="v1", kind="like")
            partition = partition_of(user_id, w.config.log.partitions)
            w.log.append(EVENTS, [Append(partition, b"", encode(event))])
        w.fold.turn()
        assert set(w.sessions.blobs) == {"alice", "alice\n", "a\nb"}
        for path in ("/v1/users/alice%0A", "/v1/users/a%0Ab", "/v1/items/v1%0A"):
            assert (await w.client.delete(path, headers=ADMIN)).status_code == 422
        for path in ("/v1/sessions/alice%0A", "/v1/inspect/users/alice%0A"):
            assert (await w.client.get(path, headers=ADMIN)).status_code == 422
        assert w.log.end(CONTROL, 0) == 0 and w.log.end(ITEMS, 0) == 60
        for user_id in ("a\nb", "alice\n"):
            body = {"user_id": user_id}
            assert (await w.client.post("/v1/users/erase", json=body)).status_code == 401
            answer = await w.client.post("/v1/users/erase", json=body, headers=ADMIN)
            assert answer.status_code == 202 and answer.json()["accepted"] == 1
        w.fold.turn()
        assert set(w.sessions.blobs) == {"alice"}


async def test_no_new_id_has_a_control_character(world: World) -> None:
    async with living(world) as w:
        asked = await w.client.post("/v1/recommend", json={"user_id": "alice\n"})
        assert asked.status_code == 422 and "user_id" in asked.json()["details"][0]["field"]
        for route, more in (("recommend", {}), ("rank", {"candidate_ids": ["v1"]})):
            place = {"user_id": "u1", "surface": "\x1b[2J"} | more  # a report prints it
            refused = await w.client.post(f"/v1/{route}", json=place)
            assert refused.status_code == 422 and refused.json()["details"][0]["field"] == "surface"
        for path, body in {
            "/v1/users": {"users": [{"user_id": "a\nb"}]},
            "/v1/items": {"items": [{"item_id": "v\x7f"}]},
            "/v1/events": {"events": [view("r", "v1\x00", "e")]},
        }.items():
            answer = await w.client.post(path, json=body, headers=ADMIN)
            assert answer.json()["rejected"] == 1, answer.text


def test_the_docs_describe_keys_so_that_they_can_be_entered(world: World) -> None:
    schema = build_app(world.service, lambda: "").openapi()
    assert schema["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    assert schema["security"] == [{"bearer": []}, {}]  # on loopback none is needed


async def test_the_docs_have_the_404_of_an_unknown_item(world: World) -> None:
    paths = build_app(world.service, lambda: "").openapi()["paths"]
    inspected = paths["/v1/inspect/items/{item_id}"]["get"]["responses"]
    assert "404" in inspected and "404" not in paths["/v1/recommend"]["post"]["responses"]

    async with living(world) as w:
        answer = await w.client.get("/v1/inspect/items/none", headers=ADMIN)
        assert answer.status_code == 404
