"""Metarank's documented requests over ASGI: answered in their shapes, and joined by the ranking's id."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from plugins.gorse_and_metarank.metarank import request_id_of
from recsys.config.policy_config import PolicyConfig, Rule
from recsys.config.safety_config import SafetyConfig, SafetyRule
from recsys.config.system_config import JoinConfig
from recsys.events.event_types import Engagement, Impression
from serving.problem import Unavailable
from tests.support.serving.gorse_cases import fits
from tests.support.serving.replica_harness import popular
from tests.support.serving.service_harness import ADMIN, COMPAT, KEY, NOW_MS, World, living
from training.joining.joiner import Joiner

API = {"X-API-Key": KEY}
FORM = {"content-type": "application/x-www-form-urlencoded"}  # what curl says of -d
ITEM: dict[str, Any] = {
    "event": "item", "id": "81f46c34", "timestamp": "1599391467000", "item": "item1",
    "fields": [{"name": "title", "value": "a cat"}, {"name": "tags", "value": ["white", "black"]},
               {"name": "is_cute", "value": True}, {"name": "budget", "value": 9.0e7}],
}  # fmt: skip
USER: dict[str, Any] = {
    "event": "user", "id": "81f46c35", "timestamp": "2022-06-22T11:21:39Z", "user": "alice",
    "fields": [{"name": "age", "value": 33}, {"name": "country", "value": "NZ"}],
}  # fmt: skip
RANKING: dict[str, Any] = {
    "event": "ranking", "id": "id1", "timestamp": 1661431894711, "user": "alice", "session": "alice1",
    "fields": [{"name": "query", "value": "jeans"}, {"name": "source", "value": "search"}],
    "items": [{"id": f"v{n}", "fields": [{"name": "relevancy", "value": 2.0}]} for n in range(12)],
}  # fmt: skip
CLICK: dict[str, Any] = {
    "event": "interaction", "type": "click", "id": "id2", "ranking": "id1", "item": "v7",
    "user": "alice", "session": "alice1", "timestamp": 1661431896711,
}  # fmt: skip
TAKEN = {"accepted": int, "status": str, "tookMillis": int, "updated": int}
RANKED = {"took": int, "items": [{"item": str, "score": float}]}
EXPLAINED = {"took": int, "items": [{"item": str, "score": float, "features": list}]}
EXAMPLES: list[tuple[str, Any, Any]] = [
    ("/feedback", ITEM, TAKEN),
    ("/feedback", USER, TAKEN),
    ("/feedback", RANKING, TAKEN),
    ("/feedback", CLICK, TAKEN),
    ("/feedback", [ITEM, CLICK | {"id": "id3", "type": "purchase", "ranking": None}], TAKEN),
    ("/rank/xgboost", RANKING, RANKED),
    ("/rank/xgboost", {"id": "a1", "items": [{"id": "v1"}, {"id": "v2"}]}, RANKED),
    ("/rank/xgboost?explain=true", RANKING | {"id": "id9"}, EXPLAINED),
    ("/recommend/similar", {"count": 10, "user": "alice1", "items": ["v4"]}, RANKED),
    ("/recommend/similar", {"count": 5, "items": ["v4", "v5"]}, RANKED),
    ("/recommend/feed", {"count": 5, "user": "alice1"}, RANKED),
    ("/recommend/trending", {"count": 2}, RANKED),
]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, compat=COMPAT)


async def test_each_documented_request_is_answered_in_its_shape(world: World) -> None:
    async with living(world) as w:
        popular(w.service.replica, {3: 5, 11: 2, 6: 9})
        for path, body, shape in EXAMPLES:
            answer = await w.client.post(path, json=body, headers=API | FORM)
            assert answer.status_code == 200, (path, answer.text)
            assert fits(answer.json(), shape), (path, answer.text)
            assert answer.json().get("items", "no list"), path
        trending = (await w.client.post("/recommend/trending", json={"count": 2})).json()
        assert [one["item"] for one in trending["items"]] == ["v6", "v3"]
        assert (await w.client.get("/health")).status_code == 200


@pytest.mark.parametrize("between", ["\n", ""], ids=["lines", "as curl -d @file sends lines"])
async def test_events_that_follow_one_another_are_a_batch(world: World, between: str) -> None:
    async with living(world) as w:
        click = CLICK | {"ranking": None}
        batch = [ITEM, click, click | {"id": "id4", "item": "v8"}]
        body = between.join(map(json.dumps, batch)).encode()
        taken = await w.client.post("/feedback", content=body, headers=API | FORM)
        assert taken.status_code == 200 and taken.json()["accepted"] == 3, taken.text
        assert [event.item_id for event in w.events()] == ["v7", "v8"]
        assert w.service.replica.catalogue.index_of("item1") is not None
        torn = await w.client.post("/feedback", content=body[:-2], headers=API | FORM)
        assert torn.status_code == 400 and torn.json()["details"][0]["field"] == "[2]"
        wrong = json.dumps(click | {"id": "id5"}) + between + json.dumps(click | {"type": "stare"})
        refused = await w.client.post("/feedback", content=wrong.encode(), headers=API | FORM)
        assert refused.json()["details"][0]["field"] == "[1].type" and len(w.events()) == 2


async def test_a_ranking_has_all_that_was_given_but_what_was_removed_and_is_in_the_order_of_its_scores(
    world: World,
) -> None:
    async with living(world) as w:
        assert (await w.client.delete("/v1/items/v2", headers=ADMIN)).status_code == 202
        for _ in range(2):  # the second time the replica has surely read it
            await w.client.post("/feedback", json=ITEM, headers=API)
        ids = ["nowhere", *(f"v{n}" for n in range(8)), "never"]
        ranking = {"id": "r", "user": "u", "items": [{"id": i} for i in (*ids, "v1")]}
        items = (await w.client.post("/rank/feed", json=ranking)).json()["items"]
        assert sorted(i["item"] for i in items) == sorted(set(ids) - {"v2"})
        assert [i["item"] for i in items][-2:] == ["nowhere", "never"]
        scores = [i["score"] for i in items]
        assert scores == sorted(scores, reverse=True)


async def test_more_than_a_logged_list_is_ranked_and_the_first_are_logged(tmp_path: Path) -> None:
    async with living(World(tmp_path, items=130, compat=COMPAT)) as w:
        ranking = {"id": "r", "user": "u", "items": [{"id": f"v{n}"} for n in range(130)]}
        items = (await w.client.post("/rank/search", json=ranking)).json()["items"]
        assert len({i["item"] for i in items}) == 130
        await w.written()
        [shown] = w.events()
        assert [served.item_id for served in shown.items] == [i["item"] for i in items[:100]]
        assert (shown.surface, shown.request_id) == ("search", request_id_of("u", "r"))
        assert shown.inputs.by_score and {served.propensity for served in shown.items} <= {1.0} | {
            1 / k for k in range(1, 131)
        }  # of equals one is drawn


async def test_what_a_rule_takes_out_comes_behind_the_others(tmp_path: Path) -> None:
    world, rule = (World(tmp_path, compat=COMPAT), Rule("author", "a3", "limit", 0.0))  # of v3, v10, v17, ...
    world.config = replace(world.config, policy=PolicyConfig(rules=(rule,)))
    world.restart()

    async with living(world) as w:
        ranked = (await w.client.post("/rank/feed", json=RANKING)).json()["items"]
        assert [one["item"] for one in ranked][-2:] in (["v3", "v10"], ["v10", "v3"])
        assert len(ranked) == 12
        await w.written()
        [shown] = w.events()
        assert {served.item_id for served in shown.items}.isdisjoint({"v3", "v10"})


async def test_what_a_safety_rule_closes_is_in_no_list(tmp_path: Path) -> None:
    rules = SafetyConfig(rules=(SafetyRule(field="author", value="a3"),))

    async with living(World(tmp_path, compat=COMPAT, safety=rules)) as w:
        popular(w.service.replica, {3: 9, 10: 8, 4: 7})
        ranked = (await w.client.post("/rank/feed", json=RANKING)).json()["items"]
        assert {one["item"] for one in ranked} == {f"v{n}" for n in range(12)} - {"v3", "v10"}
        for body in ({"count": 50}, {"count": 50, "items": ["v4", "v5"]}):
            found = (await w.client.post("/recommend/feed", json=body)).json()["items"]
            assert found and {one["item"] for one in found}.isdisjoint({"v3", "v10", "v17"})


async def test_a_click_is_joined_with_its_ranking_and_what_was_displayed_is_shown(world: World) -> None:
    async with living(world) as w:
        ranked = (await w.client.post("/rank/feed", json=RANKING)).json()["items"]
        await w.written()
        top = RANKING | {"items": [{"id": one["item"]} for one in ranked[:4]]}
        clicked = CLICK | {"item": ranked[2]["item"], "timestamp": NOW_MS}
        for event in (top | {"timestamp": NOW_MS}, clicked, clicked):
            sent = await w.client.post("/feedback", json=event, headers=API)
            assert sent.json()["accepted"] == 1
        events = w.events()
        labels = list(w.service.features.schema.labels)
        joiner = Joiner(0, labels, JoinConfig())
        examples = [e for n, event in enumerate(events) for e in joiner.feed(n, event)]
        final = {e.item_id: e.labels[labels.index("click")] for e in examples}
        assert final == {one["item"]: float(n == 2) for n, one in enumerate(ranked[:4])}
        assert joiner.counts["unmatched"] == 0


async def test_an_interaction_outside_of_a_ranking_is_attributed(world: World) -> None:
    async with living(world) as w:
        await w.client.post("/rank/feed", json=RANKING)
        await w.written()
        like = CLICK | {"ranking": "", "type": "like", "timestamp": str(NOW_MS)}
        watch = {"fields": [{"name": "watch_ms", "value": 9_000}], "type": "view", "id": "id3"}
        await w.client.post("/feedback", json=[like, like | watch], headers=API)
        events = w.events()
        done = [e for e in events if isinstance(e, Engagement)]
        assert {e.kind for e in done} == {"like", "view", "long_view"}
        assert {e.request_id for e in done} == {""} and done[-1].watch_ms == 9_000
        joiner = Joiner(0, list(w.service.features.schema.labels), JoinConfig())
        [one] = [e for n, event in enumerate(events) for e in joiner.feed(n, event)]
        assert one.item_id == "v7" and one.request_id == request_id_of("alice", "id1")
        assert joiner.counts["attributed"] == 3


async def test_a_ranking_asked_for_again_is_a_request_of_its_own(world: World) -> None:
    async with living(world) as w:
        for n in (4, 6, 8):  # of other items each time, or the same
            asked = RANKING | {"items": RANKING["items"][:n]}
            assert len((await w.client.post("/rank/feed", json=asked)).json()["items"]) == n
        other = RANKING | {"user": "bob"}
        assert (await w.client.post("/rank/feed", json=other)).status_code == 200
        await w.written()
        shown = [e for e in w.events() if isinstance(e, Impression)]
        ids = {e.request_id: len(e.items) for e in shown}
        assert len(ids) == 4 and ids[request_id_of("alice", "id1")] == 4
        assert "recsys_rankings_repeated_total 2.0" in (await w.client.get("/metrics")).text


async def test_a_ranking_that_wasnt_answered_keeps_its_id(world: World) -> None:
    async with living(world) as w:
        recommend = w.service.recommend

        async def away(*_: Any, **__: Any) -> Any:
            raise Unavailable("not now")

        w.service.recommend = away  # type: ignore[method-assign]
        assert (await w.client.post("/rank/feed", json=RANKING)).status_code == 503
        w.service.recommend = recommend  # type: ignore[method-assign]
        assert (await w.client.post("/rank/feed", json=RANKING)).status_code == 200
        await w.written()
        assert [e.request_id for e in w.events()] == [request_id_of("alice", "id1")]


async def test_the_longest_ids_are_displayed(world: World) -> None:
    async with living(world) as w:
        longest = RANKING | {"id": "r" * 256, "items": [{"id": "x" * 256}, {"id": "y" * 256}]}
        sent = await w.client.post("/feedback", json=longest)
        assert sent.json()["accepted"] == 1 and len({e.event_id for e in w.events()}) == 2


async def test_who_is_nobody_has_a_session_of_their_own(world: World) -> None:
    async with living(world) as w:
        for name in ("a", "b"):
            await w.client.post("/rank/feed", json={"id": name, "items": [{"id": "v1"}]})
            await w.client.post(
                "/feedback",
                json=CLICK | {"ranking": name, "id": name, "item": "v1", "user": None, "session": None},
            )
        await w.written()
        shown = {e.request_id: e.user_id for e in w.events() if isinstance(e, Impression)}
        clicked = {e.request_id: e.user_id for e in w.events() if isinstance(e, Engagement)}
        assert len(shown) == 2 == len(set(shown.values())) and shown == clicked


async def test_an_item_event_says_some_fields_and_leaves_the_others(world: World) -> None:
    async with living(world) as w:
        told = [ITEM | {"item": "v1", "fields": [{"name": "price", "value": n}]} for n in (1, 2)]
        told.append(ITEM | {"item": "v1", "fields": [{"name": "topic", "value": "music"}]})
        assert (await w.client.post("/feedback", json=told, headers=API)).json()["accepted"] == 3
        its = w.service.replica.catalogue.fields[1]
        assert (its["price"], its["topic"], its["author"]) == (2, "music", "a1")


async def test_items_and_users_come_without_a_key_where_the_configuration_says_so(tmp_path: Path) -> None:
    async with living(World(tmp_path, compat=replace(COMPAT, keyless=True))) as w:
        assert (await w.client.post("/feedback", json=[ITEM, USER])).status_code == 200
        strange = {"sec-fetch-site": "same-site"}
        assert (await w.client.post("/feedback", json=ITEM, headers=strange)).status_code == 403


REFUSED: list[tuple[str, Any, dict[str, str], int, str]] = [
    ("/feedback", [CLICK, CLICK | {"event": "stare"}], API, 400, "[1].event"),
    ("/feedback", CLICK | {"type": "stare"}, API, 400, "type"),
    ("/feedback", CLICK | {"timestamp": None}, API, 400, "timestamp"),
    ("/feedback", CLICK | {"timestamp": True}, API, 400, "timestamp"),
    ("/feedback", CLICK | {"id": None}, API, 400, "id"),
    ("/feedback", CLICK | {"user": None, "session": None, "ranking": None}, API, 400, "user"),
    ("/feedback", RANKING | {"items": []}, API, 400, "items"),
    ("/feedback", RANKING | {"items": ["v1"]}, API, 400, "items[0]"),
    ("/feedback", ITEM | {"fields": [{"name": "a", "value": {}}]}, API, 400, "fields[0].value"),
    ("/feedback", ITEM | {"fields": [{"value": 1}]}, API, 400, "fields[0].name"),
    ("/feedback", 7, API, 400, "body"),
    ("/feedback", ITEM, {}, 401, ""),
    ("/feedback", [CLICK, USER], {"X-API-Key": "x"}, 401, ""),
    ("/feedback", CLICK, {"origin": "http://elsewhere.test"}, 403, ""),
    ("/rank/x", RANKING | {"id": 7}, API, 400, "id"),
    ("/feedback", [CLICK] * 501, API, 400, "body"),
    ("/feedback", [RANKING | {"id": f"r{n}"} for n in range(42)], API, 400, "body"),  # of 12 items
    ("/feedback", RANKING | {"items": [{"id": f"v{n}"} for n in range(501)]}, API, 400, "body"),
    ("/rank/x", RANKING | {"fields": [{"name": "a", "value": 2**64}]}, API, 400, "fields.a"),
    ("/rank/x", RANKING | {"fields": [{"name": f"f{n}", "value": 1} for n in range(51)]}, API, 400, "fields"),
    ("/rank/x", {"id": "r"}, API, 400, "items"),
    ("/rank/x", {"id": "r", "items": [{"id": "v1"}] * 1001}, API, 400, "items"),
    ("/recommend/x", {"count": 0}, API, 400, "count"),
    ("/recommend/x", {"count": 101}, API, 400, "count"),
    ("/recommend/x", {"items": [7]}, API, 400, "items"),
    ("/train/xgboost", None, API, 501, ""),
    ("/flush", None, API, 501, ""),
    ("/inference/encoder/x", {"texts": ["a"]}, API, 501, ""),
]


async def test_what_cant_be_done_is_said_clearly_and_nothing_of_it_is_done(world: World) -> None:
    async with living(world) as w:
        for path, body, headers, status, field in REFUSED:
            answer = await w.client.post(path, json=body, headers=headers)
            assert answer.status_code == status, (path, body, answer.text)
            assert len(answer.json()["error"]) > 10
            if field:
                assert answer.json()["details"][0]["field"] == field, answer.text
        broken = await w.client.post("/feedback", content=b"{", headers=API)
        assert broken.status_code == 400
        assert w.events() == [] and w.log.end("items", 0) == 60


HUGE = {"fields": [{"name": "text", "value": "x" * 70_000}]}
HALF = {"fields": [{"name": "text", "value": "x" * 40_000}]}
FALSE_WATCH = {"fields": [{"name": "watch_ms", "value": -1}]}


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        (CLICK | FALSE_WATCH, "[3].watch_ms"),
        (USER | HUGE, "[3].event"),
        (ITEM | HUGE, "[3].event"),
        (ITEM | {"item": "v1"} | HALF, "[3].event"),  # with what it has: too much
    ],
)
async def test_a_body_is_taken_whole_or_not_at_all(world: World, fault: dict[str, Any], field: str) -> None:
    async with living(world) as w:
        more = {"fields": [{"name": "more", "value": "x" * 40_000}]}
        had = await w.client.post("/feedback", json=ITEM | {"item": "v1"} | more, headers=API)
        assert had.status_code == 200
        sent = await w.client.post("/feedback", json=[ITEM, USER, RANKING, fault], headers=API)
        assert sent.status_code == 400 and sent.json()["details"][0]["field"] == field, sent.text
        assert w.events() == [] and w.log.end("items", 0) == 61
        text = (await w.client.get("/metrics")).text
        assert 'recsys_events_total{status="rejected"} 4.0' in text


async def test_nothing_known_and_nothing_given_is_an_empty_list(world: World) -> None:
    async with living(world) as w:
        unknown = {"id": "r", "user": "u", "items": [{"id": "nowhere"}]}
        found = (await w.client.post("/rank/feed", json=unknown)).json()["items"]
        assert found == [{"item": "nowhere", "score": 0.0}]
        near = (await w.client.post("/recommend/similar", json={"items": ["nowhere"]})).json()
        assert near["items"] == []
