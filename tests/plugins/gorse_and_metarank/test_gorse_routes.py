"""Gorse's documented requests over ASGI: answered in their shapes, and what stands on the log of them."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys.config.part_configs import CompatConfig
from recsys.config.safety_config import SafetyConfig, SafetyRule
from recsys.events.event_types import Engagement, Impression
from recsys.events.records import CONTROL
from serving.ingestion.event_validation import ACCEPTED, REJECTED, FieldError, Result
from tests.support.serving.gorse_cases import API, EXAMPLES, FEEDBACK, ITEM, ROWS, SCORES, USER, fits
from tests.support.serving.replica_harness import popular
from tests.support.serving.service_harness import COMPAT, NOW_MS, World, living, run


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, compat=COMPAT)


async def test_each_documented_request_is_answered_in_its_shape(world: World) -> None:
    async with living(world) as w:
        popular(w.service.replica, {3: 5, 11: 2, 6: 9})
        for method, path, body, shape in EXAMPLES:
            answer = await w.client.request(method, path, json=body, headers=API)
            assert answer.status_code == 200, (path, answer.text)
            assert fits(answer.json(), shape), (path, answer.text)
            assert answer.json(), (path, "a list of nothing fits every shape")
        ordered = (await w.client.get("/api/popular?n=2&offset=1")).json()
        assert [one["Id"] for one in ordered] == ["v3", "v11"]
        assert ordered[0]["Score"] > ordered[1]["Score"]


def test_a_wrong_shape_is_found() -> None:
    assert fits([{"Id": "a", "Score": 1.0}], SCORES) and not fits(["a"], SCORES)
    for wrong in ({"Id": "a"}, {"Id": "a", "Score": "1"}, {"Id": "a", "Score": 1.0, "More": 1}):
        assert not fits([wrong], SCORES)


async def test_an_item_comes_back_as_it_was_sent_and_is_recommended(world: World) -> None:
    async with living(world) as w:
        assert (await w.client.post("/api/item", json=ITEM, headers=API)).json() == {"RowAffected": 1}
        assert (await w.client.get("/api/item/new")).json() == ITEM
        assert w.service.replica.catalogue.fields[-1]["tags"] == ["bear", "rabbit"]
        films = (await w.client.get("/api/recommend/bob/films")).json()
        assert films == ["new"]
        patch = {"Labels": {"author": "a9", "tags": ["owl"]}, "Comment": "a bird"}
        await w.client.patch("/api/item/new", json=patch, headers=API)
        nothing = dict.fromkeys(("Categories", "Comment", "IsHidden", "Labels", "Timestamp"))
        await w.client.patch("/api/item/new", json=nothing, headers=API)  # as its own client says it
        assert (await w.client.get("/api/item/new")).json() == ITEM | patch
        await w.client.put("/api/item/new/category/birds", headers=API)
        await w.client.delete("/api/item/new/category/films", headers=API)
        assert (await w.client.get("/api/item/new")).json()["Categories"] == ["t1", "birds"]
        await w.client.patch("/api/item/new", json={"IsHidden": True}, headers=API)
        for gone in (
            await w.client.get("/api/item/new"),
            await w.client.patch("/api/item/new", json={}, headers=API),
        ):
            assert gone.status_code == 404 and "'new'" in gone.json()["error"]
        assert (await w.client.delete("/api/item/new", headers=API)).json() == {"RowAffected": 0}


async def test_pages_of_items_are_all_of_them_once(world: World) -> None:
    async with living(world) as w:
        await w.client.delete("/api/item/v7", headers=API)
        seen, cursor = list[str](), ""
        for _ in range(10):
            page = (await w.client.get(f"/api/items?n=25&cursor={cursor}")).json()
            seen += [item["ItemId"] for item in page["Items"]]
            if not (cursor := page["Cursor"]):
                break
        assert seen == [f"v{n}" for n in range(60) if n != 7]
        assert (await w.client.get("/api/items?cursor=x")).status_code == 400


async def test_feedback_stands_on_the_log_by_the_configured_words_and_once(world: World) -> None:
    async with living(world) as w:
        batch = [FEEDBACK, FEEDBACK | {"FeedbackType": "read", "Timestamp": None}]
        assert (await w.client.post("/api/feedback", json=batch, headers=API)).json() == {"RowAffected": 2}
        assert (await w.client.post("/api/feedback", json=batch[:1], headers=API)).json() == {
            "RowAffected": 0
        }
        star, read = sorted(w.events(), key=lambda event: event.kind)
        assert (star.kind, star.request_id, star.user_id, star.item_id) == ("like", "", "bob", "v3")
        assert star.time_ms == 1_645_660_800_000 and (read.kind, read.time_ms) == ("view", NOW_MS)
        w.fold.turn()
        assert "bob" in w.sessions.blobs
        page = (await w.client.get("/v1/sessions/bob")).json()
        assert {"like"} <= {did for entry in page["recent"] for did in entry["did"]}
        text = (await w.client.get("/metrics")).text
        assert 'recsys_events_total{status="accepted"} 2.0' in text
        assert 'recsys_events_total{status="duplicate"} 1.0' in text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"FeedbackType": "stare"}, "[1].FeedbackType"),
        ({"FeedbackType": 7}, "[1].FeedbackType"),
        ({"UserId": ""}, "[1].UserId"),
        ({"ItemId": 7}, "[1].ItemId"),
        ({"ItemId": "x" * 257}, "[1].ItemId"),
        ({"Timestamp": "yesterday"}, "[1].Timestamp"),
        ({"Timestamp": "2999-01-01"}, "[1].Timestamp"),
    ],
)
async def test_bad_feedback_is_refused_whole_and_says_where(
    world: World, change: dict[str, Any], field: str
) -> None:
    async with living(world) as w:
        answer = await w.client.post("/api/feedback", json=[FEEDBACK, FEEDBACK | change])
        assert answer.status_code == 400, answer.text
        [detail] = answer.json()["details"]
        assert detail["field"] == field and detail["value"] and detail["expected"]
        assert w.events() == []
        assert 'recsys_events_total{status="rejected"} 2.0' in (await w.client.get("/metrics")).text


async def test_a_profile_and_what_was_done_come_back_as_they_were_sent(world: World) -> None:
    async with living(world) as w:

        async def get(path: str) -> Any:
            answer = await w.client.get(path, headers=API)
            return answer.json() if answer.status_code == 200 else answer.status_code

        assert await get("/api/user/cat") == 404
        for labels in (USER["Labels"], {"country": "NZ"}):
            await w.client.post("/api/user", json=USER | {"Labels": labels}, headers=API)
            assert await get("/api/user/cat") == USER | {"Labels": labels}
        done = [
            FEEDBACK | {"ItemId": f"v{n % 3}", "UserId": f"u{n % 4}", "Timestamp": f"2022-02-{n + 1:02}",
                        "FeedbackType": "star" if n % 2 else "read"} for n in range(20)
        ]  # fmt: skip
        await w.client.post("/api/feedback", json=done + done[:1])
        named = {"star": "like", "read": "view"}
        back = [
            one
            | {"Timestamp": one["Timestamp"] + "T00:00:00.000Z", "FeedbackType": named[one["FeedbackType"]]}
            for one in reversed(done)
        ]
        assert await get("/api/user/u1/feedback") == [o for o in back if o["UserId"] == "u1"]
        assert await get("/api/item/v2/feedback") == [o for o in back if o["ItemId"] == "v2"]
        stars = await get("/api/user/u1/feedback/star")
        assert [one["FeedbackType"] for one in stars] == ["star"] * 5 and len(stars) == 5
        assert (await get("/api/feedback/favorite?n=3"))["Feedback"][0]["FeedbackType"] == "favorite"
        pair = [o for o in back if (o["UserId"], o["ItemId"]) == ("u1", "v2")]
        assert await get("/api/feedback/u1/v2") == pair and len(pair) == 2
        assert await get("/api/feedback/star/u1/v2") == pair[0] | {"FeedbackType": "star"}
        told, cursor = list[Any](), ""
        for _ in range(9):
            page = await get(f"/api/feedback?n=6&cursor={cursor}")
            told += page["Feedback"]
            if not (cursor := page["Cursor"]):
                break
        assert told == back, "each once, newest first"
        w.fold.turn()
        assert await get("/api/user/u1") == {"UserId": "u1", "Labels": [], "Subscribe": [], "Comment": ""}
        await w.client.delete("/api/user/u1", headers=API)
        w.fold.turn()
        assert await get("/api/user/u1") == 404 and await get("/api/user/u1/feedback") == []
        left = await get("/api/feedback?n=100")
        assert left["Feedback"] == [o for o in back if o["UserId"] != "u1"] and not left["Cursor"]


async def test_pages_of_users_are_all_of_them_once_and_who_is_forgotten_is_gone_at_once(world: World) -> None:
    async with living(world) as w:

        async def all_users(n: int) -> list[Any]:
            told, cursor = list[Any](), ""
            while True:
                answer = await w.client.get(f"/api/users?n={n}&cursor={cursor}", headers=API)
                told += answer.json()["Users"]
                assert len(answer.json()["Users"]) <= n
                if not (cursor := answer.json()["Cursor"]):
                    return told

        users = [USER | {"UserId": f"u{i}", "Labels": {"age": i}} for i in range(7)]
        await w.client.post("/api/users", json=users, headers=API)
        await w.client.post("/api/feedback", json=[FEEDBACK, FEEDBACK | {"UserId": "u3"}])
        bob = {"UserId": "bob", "Labels": [], "Subscribe": [], "Comment": ""}
        for n in (1, 3, 8, 100):
            assert await all_users(n) == [bob, *users]
        w.fold.turn()
        await w.client.delete("/api/user/u3", headers=API)
        assert (await w.client.get("/api/user/u3", headers=API)).status_code == 404, "unfolded yet"
        assert await all_users(3) == [bob, *users[:3], *users[4:]]
        await w.client.post("/api/feedback", json=[FEEDBACK | {"UserId": "u3", "ItemId": "v4"}])
        assert bob | {"UserId": "u3"} in await all_users(3), "came back, without a profile"
        assert (await w.client.get("/api/users")).status_code == 401


async def test_a_user_whose_profile_isnt_found_any_more_isnt_told_without_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with living(world) as w:
        await w.client.post("/api/user", json={"UserId": "bob", "Labels": {"country": "NZ"}}, headers=API)
        await w.client.post("/api/feedback", json=[FEEDBACK])
        w.fold.turn()
        parts = w.config.log.partitions
        monkeypatch.setattr("plugins.gorse_and_metarank.newest_events.MOST_RECORDS", parts)  # the deed alone
        assert (await w.client.get("/api/users", headers=API)).json()["Users"] == []
        assert (await w.client.get("/api/user/bob", headers=API)).status_code == 200
        monkeypatch.setattr("plugins.gorse_and_metarank.newest_events.MOST_RECORDS", 1)
        assert (await w.client.get("/api/user/bob", headers=API)).status_code == 404


REFUSED: list[tuple[str, str, Any, int]] = [
    ("POST", "/api/item", ITEM | {"Labels": 7}, 400),
    ("POST", "/api/item", ITEM | {"Labels": {"topic": "x"}}, 400),
    ("POST", "/api/item", ITEM | {"IsHidden": "no"}, 400),
    ("POST", "/api/item", ITEM | {"Timestamp": "2020-13-01"}, 400),
    ("POST", "/api/items", ITEM, 400),
    ("POST", "/api/items", [ITEM, {}], 400),
    ("POST", "/api/items", [ITEM, ITEM | {"Labels": {"budget": 2**64}}], 400),
    ("POST", "/api/items", [ITEM, ITEM | {"Comment": "x" * 70_000}], 400),
    ("POST", "/api/users", [USER, USER | {"Labels": {"age": 2**64}}], 400),
    ("PATCH", "/api/user/cat", {"Comment": "cow"}, 400),
    ("GET", "/api/item/nowhere", None, 404),
    ("GET", "/api/item/nowhere/neighbors", None, 404),
    ("GET", "/api/recommend/bob?n=101", None, 422),
    ("GET", "/api/recommend/bob?n=60&offset=60", None, 400),
    ("GET", "/api/recommend/bob?write-back-type=stare", None, 400),
    ("GET", "/api/recommend/bob?write-back-type=read&write-back-delay=soon", None, 400),
    ("GET", "/api/recommend/bob?write-back-type=read&write-back-delay=25h", None, 400),
    ("POST", "/api/session/recommend", [FEEDBACK | {"Timestamp": "insect"}], 400),
    ("POST", "/api/user", USER | {"UserId": "a/b"}, 400),
    ("POST", "/api/item", ITEM | {"ItemId": "a/b"}, 400),
    ("GET", "/api/recommend/a%2Fb", None, 400),
    ("GET", "/api/item/v1%2fneighbors", None, 400),
    ("POST", "/api/feedback", [FEEDBACK] * 501, 400),
    ("POST", "/api/session/recommend", [FEEDBACK] * 501, 400),
    ("POST", "/api/items", [ITEM] * 1001, 400),
    ("POST", "/api/users", [USER] * 1001, 400),
    ("GET", "/api/user/cat", None, 404),
    ("GET", "/api/feedback/star/bob/v1", None, 404),
    ("GET", "/api/feedback/stare", None, 400),
    ("GET", "/api/user/cat/feedback/stare", None, 400),
    ("GET", "/api/feedback?cursor=7", None, 400),
    ("GET", "/api/feedback?cursor=1.2.3.x", None, 400),
    ("GET", "/api/feedback?n=101", None, 422),
    ("GET", "/api/users?n=101", None, 422),
    ("GET", "/api/items?q=cats", None, 501),
    ("GET", "/api/user/cat/neighbors", None, 501),
    ("DELETE", "/api/feedback/bob/v1", None, 501),
]


async def test_what_cant_be_done_is_said_clearly_and_counted(world: World) -> None:
    async with living(world) as w:
        for method, path, body, status in REFUSED:
            answer = await w.client.request(method, path, json=body, headers=API)
            assert answer.status_code == status, (path, answer.text)
            assert len(answer.json()["error"]) > 10
            if status in (400, 422):
                assert answer.json()["details"][0]["expected"], path
        assert w.events() == [] and w.log.end("items", 0) == 60
        text = (await w.client.get("/metrics")).text
        assert 'recsys_requests_total{route="/api/user/{user_id}/neighbors",status="501"} 1.0' in text
        events = next(body for _, path, body, _ in REFUSED if path == "/api/feedback")
        assert f'recsys_events_total{{status="rejected"}} {len(events)}.0' in text, "of all, those"


async def test_as_many_as_may_be_are_taken(world: World) -> None:
    async with living(world) as w:
        many = [FEEDBACK | {"UserId": f"u{n}"} for n in range(500)]
        sent = await w.client.post("/api/feedback", json=many)
        assert sent.json() == {"RowAffected": 500} and len(w.events()) == 500


@pytest.mark.parametrize("keyless", [False, True])
async def test_only_with_the_key_are_items_and_users_written_and_deeds_read(
    tmp_path: Path, keyless: bool
) -> None:
    async with living(World(tmp_path, compat=replace(COMPAT, keyless=keyless))) as w:
        for method, path, body, shape in EXAMPLES:
            writes = (shape == ROWS) != ("feedback" in path) or f"{method} {path}".startswith("GET /api/user")
            none = await w.client.request(method, path, json=body)
            wrong = await w.client.request(method, path, json=body, headers={"X-API-Key": "x"})
            assert (none.status_code, wrong.status_code) == (
                (401, 401) if writes else (200, 200 if "health" in path else 401)
            ), path
        assert w.log.end("items", 0) == 60 and w.log.end(CONTROL, 0) == 0


@pytest.mark.parametrize("its", [{}, {"gorse": True}, {"metarank": True}])
async def test_only_the_routes_that_are_wanted_are_there(tmp_path: Path, its: dict[str, bool]) -> None:
    async with living(World(tmp_path, compat=CompatConfig(**its))) as w:
        listed = await w.client.get("/api/recommend/bob", headers=API)
        assert listed.status_code == (200 if "gorse" in its else 404)
        rank = {"id": "r", "items": [{"id": "v1"}]}
        ranked = await w.client.post("/rank/x", json=rank, headers=API)
        assert ranked.status_code == (200 if "metarank" in its else 404)


async def test_a_list_is_an_impression_and_what_is_written_back_belongs_to_it(world: World) -> None:
    async with living(world) as w:
        path = "/api/recommend/bob?n=3&offset=2&write-back-type=read"
        ids = (await w.client.get(path, headers=API)).json()
        await w.written()
        [shown] = [e for e in w.events() if isinstance(e, Impression)]
        assert [str(item.item_id) for item in shown.items][2:] == ids and len(ids) == 3
        back = [e for e in w.events() if isinstance(e, Engagement)]
        assert [(e.request_id, e.kind, e.item_id) for e in back] == [
            (shown.request_id, "view", item_id) for item_id in ids
        ]
        w.fold.turn()
        later = (await w.client.get("/api/recommend/bob?n=50")).json()
        assert not set(ids) & set(later), "what was read comes no more"
        headers = {"X-API-Version": "2"}
        scored = (await w.client.get("/api/recommend/bob?n=4", headers=headers)).json()
        assert fits(scored, SCORES) and len(scored) == 4


async def test_the_longest_ids_are_written_back(world: World) -> None:
    async with living(world) as w:
        longest = ITEM | {"ItemId": "x" * 256}
        await w.client.post("/api/item", json=longest, headers=API)
        path = f"/api/recommend/{'u' * 256}/films?write-back-type=read"
        assert (await w.client.get(path)).json() == [longest["ItemId"]]
        assert [e.item_id for e in w.events() if isinstance(e, Engagement)] == [longest["ItemId"]]


def test_a_delayed_write_back_comes_at_its_time_or_at_the_end(world: World) -> None:
    async def scenario(w: World) -> None:
        path = "/api/recommend/bob?n=2&write-back-type=read&write-back-delay="
        await w.client.get(path + "30ms")
        await w.client.get(path + "1h")
        assert not [e for e in w.events() if isinstance(e, Engagement)]
        for _ in range(200):
            if len([e for e in w.events() if isinstance(e, Engagement)]) == 2:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("it was never written back")

    run(world, scenario)
    assert len([e for e in world.events() if isinstance(e, Engagement)]) == 4


async def test_the_lists_of_nobody_are_ordered_and_leave_out_what_was_seen(world: World) -> None:
    async with living(world) as w:
        for n, day in enumerate(("2020-01-03", "2020-01-09", "2020-01-06")):
            item = ITEM | {"ItemId": f"dated{n}", "Timestamp": day}
            await w.client.post("/api/item", json=item, headers=API)
        latest = (await w.client.get("/api/latest?n=5")).json()
        assert [one["Id"] for one in latest] == ["dated1", "dated2", "dated0", "v59", "v58"]
        assert [one["Score"] for one in latest][3:] == [0.0, 0.0]
        await w.client.post("/api/feedback", json=[FEEDBACK | {"ItemId": "dated2"}], headers=API)
        w.fold.turn()
        left = (await w.client.get("/api/latest?n=2&user-id=bob")).json()
        assert [one["Id"] for one in left] == ["dated1", "dated0"]
        near = (await w.client.get("/api/item/v5/neighbors?n=100")).json()
        scores = [one["Score"] for one in near]
        assert "v5" not in {one["Id"] for one in near} and len(near) == 62
        assert scores == sorted(scores, reverse=True)


async def test_no_list_has_what_a_safety_rule_closes(tmp_path: Path) -> None:
    rules = SafetyConfig(rules=(SafetyRule(field="author", value="a3", unless={"age": "adult"}),))
    closed = {"v3", "v10", "v17"}

    async with living(World(tmp_path, compat=COMPAT, safety=rules)) as w:
        popular(w.service.replica, {3: 9, 10: 8, 4: 7})
        for path in ("/api/popular", "/api/latest", "/api/item/v4/neighbors"):
            listed = {one["Id"] for one in (await w.client.get(f"{path}?n=100")).json()}
            assert "v4" in listed or "v5" in listed, path
            assert not listed & closed, path


async def test_a_category_is_a_categorical_field_of_any_kind_with_any_of_its_values(tmp_path: Path) -> None:
    """Not only a group, nor only the first values of an item, which have columns."""
    async with living(World(tmp_path, compat=replace(COMPAT, labels="topic", categories="tags"))) as w:
        many = {"ItemId": "many", "Categories": [f"t{n}" for n in range(40)]}
        await w.client.post("/api/item", json=many, headers=API)
        listed = (await w.client.get("/api/latest/t39")).json()
        assert [one["Id"] for one in listed] == ["many"]
        assert (await w.client.get("/api/recommend/u/t39")).json() == ["many"]


async def test_a_session_of_feedback_changes_its_list_and_is_logged_nowhere(world: World) -> None:
    async with living(world) as w:
        seen = [FEEDBACK | {"FeedbackType": "read", "ItemId": f"v{n}"} for n in range(0, 60, 2)]
        found = (await w.client.post("/api/session/recommend?n=10", json=seen)).json()
        assert {int(one["Id"][1:]) % 2 for one in found} == {1} and len(found) == 10
        await w.written()
        assert w.events() == []


async def test_a_list_of_categories_that_are_no_feature_names_the_setting(tmp_path: Path) -> None:
    async with living(World(tmp_path, compat=replace(COMPAT, categories="nothing"))) as w:
        answer = await w.client.get("/api/popular/films", headers=API)
        assert answer.status_code == 501 and "set compat.categories" in answer.json()["error"]


async def test_users_that_the_write_api_refuses_are_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Result(1, REJECTED, FieldError("fields", "…", "fewer bytes"))

    async def put_users(_: Any) -> list[Result]:
        return [Result(0, ACCEPTED), refused]

    async with living(world) as w:
        monkeypatch.setattr(w.service.write_api, "put_users", put_users)
        users = [USER, USER | {"UserId": "other"}]
        answer = await w.client.post("/api/users", json=users, headers=API)
        assert answer.status_code == 400
        assert answer.json()["error"] == "1 of 2 are refused, the others are taken"
        assert answer.json()["details"][0]["field"] == "[1].fields"
