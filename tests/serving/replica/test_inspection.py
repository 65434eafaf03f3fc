"""What the admin may see of an item and of a user, and that looking leaves no trace."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys.events.records import ITEMS
from serving.query import Query
from serving.replica import inspection
from serving.request import Request
from serving.variants.model_variants import CanaryRouter
from tests.support.serving.service_harness import ADMIN, World, run


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def seen(w: World, path: str) -> dict[str, Any]:
    answer = await w.client.get(f"/v1/inspect/{path}", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_only_the_admin_may_look(world: World) -> None:
    async def scenario(w: World) -> None:
        for path in ("items/v1", "users/u1"):
            assert (await w.client.get(f"/v1/inspect/{path}")).status_code == 401
            wrong = await w.client.get(f"/v1/inspect/{path}", headers={"X-Admin-Key": "wrong"})
            assert wrong.status_code == 401

    run(world, scenario)


def test_an_item_is_told_with_its_vector_and_what_is_near(world: World) -> None:
    async def scenario(w: World) -> None:
        found, replica = await seen(w, "items/v3"), w.service.replica
        index = replica.catalogue.index_of("v3")
        assert index is not None and found["fields"] == replica.catalogue.fields[index]
        vectors = replica.vectors_of(np.arange(len(replica.catalogue)))
        assert found["vector"]["norm"] == pytest.approx(float(np.linalg.norm(vectors[index])))
        products = vectors @ vectors[index]
        products[index] = -np.inf
        best = [replica.catalogue.ids[i] for i in np.argsort(-products)[: inspection.NEAR]]
        assert {its["item_id"] for its in found["near"]} == set(best) and found["alive"]
        assert found["vector"]["moved_at"] == 0 and set(found["counters"]) == {"fast", "slow"}
        missing = await w.client.get("/v1/inspect/items/nothing", headers=ADMIN)
        assert missing.status_code == 404 and w.log.end(ITEMS, 0) == 60

    run(world, scenario)


def test_a_user_is_told_with_a_list_that_nobody_is_served(world: World) -> None:
    async def scenario(w: World) -> None:
        w.service.replica.step = 1  # without a step no model ranks
        answer = await w.recommend(user_id="u1", n=3)
        await w.written()
        first = answer["items"][0]["item_id"]
        view = {
            "type": "engagement", "time_ms": w.now_ms, "request_id": answer["request_id"],
            "user_id": "u1", "item_id": first, "kind": "view", "watch_ms": 9_000, "event_id": "e1",
            "token": answer["token"],
        }  # fmt: skip
        sent = await w.client.post("/v1/events", json={"events": [view]})
        assert sent.status_code == 202
        while w.fold.turn():
            pass
        before = len(w.events())
        for _ in range(50):  # on a busy machine a list may have to go without its ranker
            found = await seen(w, "users/u1")
            if not found["answer"]["degraded"]:
                break
        items = found["answer"]["items"]
        assert len(items) == inspection.SHOWN and found["events"] > 0
        assert all(its["predictions"] and its["reasons"] is not None for its in items)
        assert found["recent"][0]["item_id"] == first and found["met"]
        assert isinstance(found["arms"], dict) and (await seen(w, "users/never"))["recent"] == []
        await w.written()
        assert len(w.events()) == before

    run(world, scenario)


def test_a_list_is_drawn_as_the_feed_draws_and_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(w: World) -> None:
        asked, read = list[Request](), list[float]()
        canary, recommend, its = (w.service.canary, w.service.live.pipeline.recommend, CanaryRouter.pipeline)

        def noted(query: Query) -> Any:
            asked.append(query.request)
            return recommend(query)

        side = SimpleNamespace(line="arm", pipeline=w.service.live.pipeline, servable=True)
        monkeypatch.setattr(canary.variants, "get", lambda line: side)
        monkeypatch.setattr(CanaryRouter, "pipeline", lambda of, user, _, c: its(of, user, "arm", c))
        monkeypatch.setattr(w.service.live.pipeline, "recommend", noted)
        monkeypatch.setattr(w.service.admission, "observe_io_wait", lambda s, now_s: read.append(s))
        found = await seen(w, "users/u1")
        assert len(found["answer"]["items"]) == inspection.SHOWN
        assert not asked[0].by_score and asked[0].explain
        assert not canary.answered and not read
        await w.recommend(user_id="u1", n=3)
        assert canary.answered["arm"] == len(read) == 1

    run(World(tmp_path), scenario)
