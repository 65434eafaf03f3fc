"""Lists that are the same for all: their orders, what rules and filters remove, and their routes."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.config.policy_config import PolicyConfig
from recsys.config.safety_config import AccessConfig, SafetyConfig, SafetyRule
from recsys.events.event_types import Engagement, Item
from recsys.events.records import ItemState
from recsys.events.rejection import Rejected
from recsys.features.families.declared import Declared
from recsys.features.feature_set_file import write_feature_set
from recsys.features.item_counters import ItemCounters
from serving.item_lists import ItemLists, Order, latest, popular, trending
from serving.pipeline import Pipeline
from serving.replica.replica import Replica
from tests.support.serving.replica_harness import NOW_MS, config, item, made
from tests.support.serving.service_harness import World, run
from tests.support.training.small_feed import FEATURES

HOUR_MS = 3_600_000


def watched(replica: Replica, views: Mapping[int, tuple[int, int]]) -> None:
    """Long views of items: weeks ago, and in the last hour."""
    fold = ItemCounters(replica.features)
    for n, (before, lately) in views.items():
        for k in range(before + lately):
            time_ms = NOW_MS - (400 * HOUR_MS if k < before else HOUR_MS) + k
            fold.engagement(
                Engagement(time_ms=time_ms, request_id="r", user_id="x", item_id=f"v{n}", kind="long_view"),
                replica.catalogue.keys[n],
            )
    columns = [column.tobytes() for column in fold.counters.export()]
    state = ItemState(offsets=[1], keys=columns[0], values=columns[1], last_ms=columns[2])
    replica.apply_item_state(state, 1)


def listed(replica: Replica, order: Order, n: int = 10, **filters: Any) -> list[str]:
    items = ItemLists(Pipeline(replica), None, lambda: NOW_MS).ordered(order, n, filters)
    assert [shown.rank for shown in items] == list(range(len(items)))
    scores = [shown.score for shown in items]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]
    return [str(shown.item_id) for shown in items]


def test_popular_and_trending_differ_in_items_that_were_always_watched() -> None:
    replica = made(items=30)
    watched(replica, {1: (90, 6), 2: (0, 5), 9: (300, 1), 3: (0, 2)})
    assert listed(replica, popular) == ["v1", "v2", "v3", "v9"]
    assert listed(replica, trending) == ["v2", "v1", "v3"]  # v9 has fewer than usual
    assert listed(replica, popular, n=1) == ["v1"]
    assert listed(replica, popular, author="a0") == ["v9"]
    [shown] = ItemLists(Pipeline(replica), None, lambda: NOW_MS).ordered(popular, 1, {"author": "a2"})
    assert shown.score == pytest.approx(5 * 2 ** (-1 / 6), rel=1e-3)  # faded for an hour of six


def test_latest_go_by_the_time_of_publication_and_then_by_arrival() -> None:
    replica = made(items=5)
    replica.apply_item(Item(time_ms=NOW_MS, item_id="v9"), 6)
    replica.apply_item(Item(time_ms=1, item_id="old"), 7)
    assert listed(replica, latest) == ["v9", "v4", "v3", "v2", "v1", "v0", "old"]
    replica.apply_item(Item(time_ms=1, item_id="v9", removed=True), 8)
    assert listed(replica, latest, n=2, tags=["t0", "t3"]) == ["v3", "v0"]


def test_similar_items_are_near_by_cosine_without_the_item_itself() -> None:
    replica = made(items=60)
    lists = ItemLists(Pipeline(replica), None, lambda: NOW_MS)
    items, missing = asyncio.run(lists.similar(8, {}, "v7"))
    vectors = replica.vectors_of(np.arange(60))[:, :-1]
    cosines = vectors @ vectors[7] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[7])
    cosines[7] = -2
    assert [shown.item_id for shown in items] == [f"v{n}" for n in np.argsort(-cosines)[:8]]
    assert not missing and items[0].score == pytest.approx(float(cosines.max()), abs=1e-6)
    some, _ = asyncio.run(lists.similar(8, {"author": "a7"}, "v7"))
    assert {shown.item_id for shown in some} == {f"v{n}" for n in range(16, 60, 9)}
    replica.apply_item(Item(time_ms=1, item_id="v7", removed=True), 61)
    for unknown in ("v7", "nowhere"):
        with pytest.raises(KeyError):
            asyncio.run(lists.similar(3, {}, unknown))


def test_rules_hold_as_for_an_unknown_viewer_and_places_are_filled() -> None:
    grown_ups = SafetyRule(field="author", value="a1", unless={"age": "adult"})
    elsewhere = SafetyRule(field="author", value="a3", when={"country": "NZ"})
    safety = SafetyConfig(rules=(grown_ups, elsewhere))
    rules = ({"do": "limit", "field": "tags", "value": "t2", "amount": 0},)
    changed = replace(config(), safety=safety, policy=PolicyConfig(rules=rules))  # type: ignore[arg-type]
    replica = made(items=700, its_config=changed)
    shown = [int(item_id[1:]) for item_id in listed(replica, latest, n=100)]
    assert len(shown) == 100
    assert not [n for n in shown if n % 9 in (1, 3) or n % 5 == 2]
    assert listed(replica, latest, author=["a1", "a3"]) == []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, access=AccessConfig(mode="keys"))


def test_the_routes_have_a_scope_and_refuse_what_they_dont_know(world: World) -> None:
    world.put(Item(time_ms=1, item_id=7, fields={"topic": "t9"}), item(3))

    async def scenario(w: World) -> None:
        key = {"X-API-Key": await w.add_key("recommend")}
        reads = {"X-API-Key": await w.add_key("read")}

        async def get(path: str, headers: Any = key, **query: Any) -> Any:
            return await w.client.get(path, params=query, headers=headers)

        for path in ("/v1/popular", "/v1/latest", "/v1/trending", "/v1/items/v1/similar"):
            assert (await get(path, {})).status_code == 401
            assert (await get(path, reads)).status_code == 403
            answer = await get(path, n=3)
            assert answer.status_code == 200 and answer.json()["degraded"] == []
            for wrong, field in (
                ({"n": 101}, "query.n"),
                ({"fliters": "{}"}, "query.fliters"),
                ({"filters": "{"}, "query.filters"),
                ({"filters": "[]"}, "query.filters"),
                ({"filters": '{"nothing": 1}'}, "filters.nothing"),
                ({"filters": '{"duration_ms": NaN}'}, "filters.duration_ms"),
            ):
                refused = await get(path, **wrong)
                assert refused.status_code == 422, wrong
                [detail] = refused.json()["details"]
                assert detail["field"] == field and detail["expected"]
        newest = await get("/v1/latest", filters=json.dumps({"topic": ["t9", "t1"]}), n=2)
        assert [shown["item_id"] for shown in newest.json()["items"]] == ["v1", "v6"]
        assert newest.json()["items"][0]["fields"]["topic"] == "t1"
        [odd] = (await get("/v1/latest", filters='{"topic": "t9"}')).json()["items"]
        assert odd["item_id"] == 7 and odd["sources"] == ["latest"]
        assert (await get("/v1/items/7/similar")).status_code == 200
        unknown = await get("/v1/items/no/where/similar")
        assert unknown.status_code == 404 and "no/where" in unknown.text
        await w.written()
        assert w.events() == []

    run(world, scenario)


def test_of_many_items_the_latest_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = made(items=1)
    times = [(n * 37) % 50 for n in range(60)]
    replica.apply_items([Item(time_ms=t, item_id=f"w{n}") for n, t in enumerate(times)], 61)
    whole = listed(replica, latest, n=8)
    monkeypatch.setattr("serving.item_lists._MOST", 8)
    assert listed(replica, latest, n=8) == whole
    assert whole[0] == "v0" and whole[1:] == [f"w{n}" for n in (27, 54, 4, 31, 58, 8, 35)]


def test_trending_with_one_half_life_is_refused_with_the_remedy(tmp_path: Path) -> None:
    features = replace(FEATURES, declared=Declared(half_lives_h=(6.0,)))
    with pytest.raises(Rejected, match="half_lives.*two or more in the app's definition"):
        listed(made(features=features, steps=0), trending)
    world = World(tmp_path)
    write_feature_set(world.config, features)
    world.restart()

    async def scenario(w: World) -> None:
        refused = await w.client.get("/v1/trending")
        assert refused.status_code == 422
        assert refused.json()["details"] == [
            {
                "field": "features.half_lives",
                "value": "[6.0]",
                "expected": "two or more in the app's definition: engagements lately against the usual",
            }
        ]
        assert (await w.client.get("/v1/popular")).status_code == 200

    run(world, scenario)
