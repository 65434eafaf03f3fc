"""POST /v1/rank: candidates in order of scores, each one in the list or named with a reason."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from recsys.config.safety_config import AccessConfig, SafetyConfig, SafetyRule
from recsys.config.system_config import ServeConfig
from recsys.events.event_types import Item
from recsys.events.hashing import key_of
from recsys.features.session import Session
from tests.support.serving.service_harness import ADMIN, NOW_MS, Slow, World, living


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def rank(w: World, **body: Any) -> dict[str, Any]:
    answer = await w.client.post("/v1/rank", json={"user_id": "u1"} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_order_is_that_of_the_scores_unless_the_caller_explores(world: World) -> None:
    async with living(world) as w:
        ids = [f"v{n}" for n in range(40)]
        lists = [await rank(w, candidate_ids=ids) for _ in range(2)]
        scores = [shown["score"] for shown in lists[0]["items"]]
        assert scores == sorted(scores, reverse=True)
        assert {shown["item_id"] for shown in lists[0]["items"]} == set(ids)
        explored = [await rank(w, candidate_ids=ids, n=5, explore=True) for _ in range(5)]
        orders = {tuple(shown["item_id"] for shown in answer["items"]) for answer in explored}
        assert len(orders) > 1
        assert all(0 < i["propensity"] < 1 for answer in explored for i in answer["items"])
        await w.written()
        logged = w.events()
        assert len(logged) == 7
        by_id = {impression.request_id: impression for impression in logged}
        for answer in explored:
            impression = by_id[answer["request_id"]]
            served = [(i.item_id, i.propensity) for i in impression.items]
            assert served == [(i["item_id"], i["propensity"]) for i in answer["items"]]
            assert not impression.inputs.by_score
        assert all(by_id[answer["request_id"]].inputs.by_score for answer in lists)
        drawn = await w.recommend(candidate_ids=ids)
        await w.written()
        [impression] = [e for e in w.events() if e.request_id == drawn["request_id"]]
        assert not impression.inputs.by_score


async def test_each_candidate_that_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    rules = (SafetyRule(field="topic", value="t4"),)
    world = World(tmp_path, safety=SafetyConfig(rules=rules))
    world.put(Item(time_ms=NOW_MS, item_id="v2", removed=True))
    world.put(Item(time_ms=NOW_MS, item_id=7))

    async with living(world) as w:
        ids = ["v1", "v2", "nowhere", 8, "v3", "v4", "7", "v1"]
        answer = await rank(w, candidate_ids=ids, exclude_ids=["v3"])
        assert {shown["item_id"] for shown in answer["items"]} == {"v1", 7}
        assert answer["warnings"] == [
            {"item_id": "v2", "why": "unknown"},
            {"item_id": "nowhere", "why": "unknown"},
            {"item_id": 8, "why": "unknown"},
            {"item_id": "v3", "why": "excluded"},
            {"item_id": "v4", "why": "closed"},
        ]
        best = await rank(w, candidate_ids=["v1", "v5", "v6"], n=1)
        assert len(best["items"]) == 1 and best["warnings"] == []
        drawn = await w.recommend(candidate_ids=["v1", "nowhere"])
        assert drawn["warnings"] == [{"item_id": "nowhere", "why": "unknown"}]
        assert (await w.recommend())["warnings"] == []


async def test_a_list_that_nobody_sees_is_not_logged_and_may_be_long(world: World) -> None:
    ids = [f"w{n}" for n in range(300)]
    world.put(*(Item(time_ms=NOW_MS, item_id=item_id) for item_id in ids))

    async with living(world) as w:
        long = await rank(w, candidate_ids=ids, n=1000, log=False)
        assert len(long["items"]) == 300 and long["token"] == ""
        await w.written()
        assert w.events() == []
        for body in ({}, {"log": False, "explain": True}):
            asked = {"user_id": "u1", "candidate_ids": ids, "n": 101} | body
            refused = await w.client.post("/v1/rank", json=asked)
            assert refused.status_code == 422 and "at most 100" in refused.text


async def test_a_session_counts_and_muted_items_may_be_ranked(world: World) -> None:
    session = Session("u1", world.service.features, 500)
    session.wishes[key_of("item", "v5")] = "mute"
    session.wishes[key_of("item.author", "a1")] = "block"
    world.sessions.blobs["u1"] = session.pack()

    async with living(world) as w:
        answer = await rank(w, candidate_ids=["v5", "v8", "v9"])
        assert {shown["item_id"] for shown in answer["items"]} == {"v5", "v9"}
        assert answer["warnings"] == [{"item_id": "v8", "why": "closed"}]


async def test_a_key_needs_the_scope_and_a_list_has_a_token_only_for_who_may_attribute(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, access=AccessConfig(mode="keys", user_lists=0.1))

    async with living(world) as w:
        body = {"user_id": "u1", "candidate_ids": ["v1", "v2"]}
        reads = {"X-API-Key": await w.add_key("read")}
        lists = {"X-API-Key": await w.add_key("recommend")}
        assert (await w.client.post("/v1/rank", json=body)).status_code == 401
        assert (await w.client.post("/v1/rank", json=body, headers=reads)).status_code == 403
        first = await w.client.post("/v1/rank", json=body, headers=lists)
        assert first.status_code == 200 and first.json()["token"] == ""
        again = await w.client.post("/v1/rank", json=body, headers=lists)
        assert again.status_code == 429  # the quota of a user's lists
        full = await w.client.post("/v1/rank", json=body, headers=ADMIN)
        assert full.json()["token"]
        unlogged = await w.client.post("/v1/rank", json=body | {"log": False}, headers=ADMIN)
        assert unlogged.json()["token"] == ""


async def test_too_many_rankings_at_a_time_are_turned_away_as_lists_are(tmp_path: Path) -> None:
    world = World(tmp_path, serve=ServeConfig(max_ongoing=2))
    world.service.sessions.store.sessions = Slow()

    async with living(world) as w:
        body = {"user_id": "u1", "candidate_ids": ["v1"]}
        answers = await asyncio.gather(*(w.client.post("/v1/rank", json=body) for _ in range(5)))
        assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503]
        metrics = (await w.client.get("/metrics")).text
        assert 'recsys_refused_total{reason="ongoing",route="/v1/recommend"} 3.0' in metrics


async def test_filters_hold_for_lists_and_rankings_and_wrong_ones_are_named(world: World) -> None:
    async with living(world) as w:
        drawn = await w.recommend(n=50, filters={"topic": "t3", "duration_ms": {"min": 10_000}})
        assert {shown["fields"]["topic"] for shown in drawn["items"]} == {"t3"}
        assert len(drawn["items"]) == 12
        answer = await rank(w, candidate_ids=["v3", "v4"], filters={"topic": ["t3", "t9"]})
        assert [shown["item_id"] for shown in answer["items"]] == ["v3"]
        assert answer["warnings"] == [{"item_id": "v4", "why": "filtered"}]
        await w.written()
        assert {"topic": ["t3", "t9"]} in [impression.inputs.filters for impression in w.events()]
        for path in ("/v1/recommend", "/v1/rank"):
            body = {"user_id": "u1", "candidate_ids": ["v1"], "filters": {"duration_ms": "long"}}
            refused = await w.client.post(path, json=body)
            assert refused.status_code == 422
            [detail] = refused.json()["details"]
            assert (detail["field"], detail["value"]) == ("filters.duration_ms", '"long"')
            assert detail["expected"].startswith("a number")
        many = {"user_id": "u1", "filters": {f"f{n}": 1 for n in range(11)}}
        assert (await w.client.post("/v1/recommend", json=many)).status_code == 422
        large = {"user_id": "u1", "filters": {"topic": ["x" * 1_000] * 99}}
        assert (await w.client.post("/v1/recommend", json=large)).status_code == 422
