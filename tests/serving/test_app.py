"""Recommend and sessions over ASGI: the list, its impression, and what a list does without its parts."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.memory_sessions import MemorySessions
from recsys.config.system_config import ServeConfig
from recsys.events.event_types import Engagement, Impression
from tests.support.serving.service_harness import NOW_MS, Broken, Slow, World, run, view


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
        sent = [view(first["request_id"], seen, "e1", watch_ms=9_000, token=first["token"])]
        answer = await w.client.post("/v1/events", json={"events": sent})
        assert answer.status_code == 202
        assert answer.json() == {
            "accepted": 1, "duplicates": 0, "rejected": 0, "unproven": 0,
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
            "learned": False,
        }  # fmt: skip
        assert {topic["tag"] for topic in session["topics"]} == set(first["items"][0]["fields"]["tags"])
        assert all(topic["weight"] > 0 for topic in session["topics"])
        second = await w.recommend(n=50)
        assert seen not in {i["item_id"] for i in second["items"]}
        assert second["stamp"]["session_offset"] == 3
        await asyncio.sleep(0.03)
        status = (await w.client.get("/v1/status")).json()
        assert 0 < status["click_to_session_p95_ms"] < 5_000

    run(world, scenario)


@pytest.mark.parametrize("store", [Slow, Broken])
def test_without_sessions_the_answer_is_degraded(world: World, store: type[MemorySessions]) -> None:
    world.service.sessions.store.sessions = store()

    async def scenario(w: World) -> None:
        for _ in range(5):
            answer = await w.recommend(n=3)
            assert answer["degraded"] == ["model", "session"]
            assert len(answer["items"]) == 3 and answer["took_ms"] < 2_000
        await w.written()
        assert all(e.degraded == ["model", "session"] for e in w.events())
        assert (await w.client.get("/v1/sessions/u1")).status_code == 503

    run(world, scenario)


def test_too_many_at_a_time_are_turned_away(tmp_path: Path) -> None:
    world = World(tmp_path, serve=ServeConfig(max_ongoing=2))
    world.service.sessions.store.sessions = Slow()

    async def scenario(w: World) -> None:
        asked = [w.client.post("/v1/recommend", json={"user_id": f"u{i}"}) for i in range(6)]
        answers = await asyncio.gather(*asked)
        statuses = sorted(a.status_code for a in answers)
        assert statuses == [200, 200, 503, 503, 503, 503]
        turned = next(a for a in answers if a.status_code == 503)
        assert turned.headers["retry-after"] == "1" and turned.json()["error"]

    run(world, scenario)


def test_a_surface_may_have_a_policy_of_its_own(world: World) -> None:
    surfaces = {"home": {"sources": {"fresh": 80}, "fixed": {0: "v9"}}}
    world.config = replace(world.config, surfaces=surfaces)
    world.restart()

    async def scenario(w: World) -> None:
        home = await w.recommend(surface="home", n=20)
        feed = await w.recommend(n=20)
        sources = {source for shown in home["items"] for source in shown["sources"]}
        assert home["items"][0]["item_id"] == "v9" and sources <= {"fresh", "fixed", "quota"}
        assert home["stamp"]["policy"] != feed["stamp"]["policy"]
        await w.written()
        logged = {e.request_id: e for e in w.events()}
        assert logged[home["request_id"]].surface == "home"
        assert logged[home["request_id"]].stamp.policy == home["stamp"]["policy"]

    run(world, scenario)


def test_a_surface_may_have_its_own_number_of_items(world: World) -> None:
    world.config = replace(world.config, surfaces={"home": {"n": 4}, "side": {"explore": 0.0}})
    world.restart()

    async def scenario(w: World) -> None:
        for asked, n in (
            ({"surface": "home"}, 4), ({"surface": "home", "n": 7}, 7), ({"surface": "side"}, 10), ({}, 10),
        ):  # fmt: skip
            assert len((await w.recommend(**asked))["items"]) == n
        same = [(await w.recommend(surface=name))["stamp"]["policy"] for name in ("home", "feed")]
        assert same[0] == same[1]

    run(world, scenario)


@pytest.mark.parametrize("changes", [{"weights.nothing": 1.0}, {"sources": {"nothing": 3}}])
def test_a_surface_with_a_wrong_policy_is_refused_at_the_start(
    world: World, changes: dict[str, object]
) -> None:
    world.config = replace(world.config, surfaces={"home": changes})
    with pytest.raises(ValueError):
        world.restart()
