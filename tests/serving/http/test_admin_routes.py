"""Items, users and erasure over ASGI: for the admin alone."""

import asyncio
from pathlib import Path

import httpx
import pytest

from recsys.events.control_records import Erasure
from recsys.events.records import CONTROL, ITEMS, unpack
from serving.http_app import build_app
from tests.support.service_harness import ADMIN, World, run


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_only_the_admin_changes_items_and_users(world: World) -> None:
    async def scenario(w: World) -> None:
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

    run(world, scenario)


def test_an_empty_admin_key_opens_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = World(tmp_path)
        app = build_app(world.service, lambda: "")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.delete("/v1/users/u1", headers={"X-Admin-Key": ""})
            assert answer.status_code == 401

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
