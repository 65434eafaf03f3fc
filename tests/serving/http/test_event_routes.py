"""Events over ASGI: each judged alone; bodies that are wrong; a log that takes nothing."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from recsys.clock import machine_ms
from recsys.features.session import REQUESTS
from recsys.log.protocol import LogUnavailable
from recsys.process.disk_budget import Level, Space
from recsys.process.part_process import run_folder
from recsys.process.space_file import FILE
from tests.support.serving.service_harness import ADMIN, NOW_MS, World, living, view


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_events_are_judged_one_by_one(world: World) -> None:
    async with living(world) as w:
        events = [
            view("r", "v1", "e1"),
            view("r", "v1", "e1"),
            view("r", "v1", "e2", kind="stare"),
            {"type": "impression", "time_ms": NOW_MS, "request_id": "r", "user_id": "u", "items": []},
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


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (b'"watch_ms": NaN', "watch_ms"),
        (b'"watch_ms": 1e999', "watch_ms"),
        (b'"note": "\\ud800"', "note"),
        (b'"note": [NaN, ' + b"[" * 6 + b"]" * 6 + b"]", "note[0]"),
    ],
)
async def test_a_bad_event_in_a_body_costs_itself_alone(world: World, bad: bytes, field: str) -> None:
    async with living(world) as w:
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


@pytest.mark.slow
async def test_without_a_log_events_are_refused_and_impressions_kept(world: World) -> None:
    append = world.log.append

    def away(topic: str, records: Any) -> list[int]:
        raise LogUnavailable("disk full")

    async with living(world) as w:
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


async def test_without_disk_space_events_get_507_and_lists_go_on_without_being_logged(world: World) -> None:
    space = Space(level=Level.FULL, time_ms=machine_ms())
    folder = run_folder(world.service.config.state)
    (folder / FILE).write_bytes(msgspec.json.encode(space))

    async with living(world) as w:
        refused = await w.client.post("/v1/events", json={"events": [view("r", "v1", "e1")]})
        assert refused.status_code == 507 and refused.headers["retry-after"] == "30"
        assert "no space" in refused.json()["error"]
        assert len((await w.recommend(n=3))["items"]) == 3
        assert w.service.writer.drops == {"space": 1}
        assert 'reason="space"} 1.0' in (await w.client.get("/metrics")).text
        await w.written()
        assert w.events() == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/recommend", b"{", 400),
        ("/v1/recommend", b'{"user_id": NaN}', 400),
        ("/v1/recommend", b'{"user_id": "u", "context": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001, 400),
        ("/v1/recommend", b'{"user_id": "u", "context": ' + b'{"a":' * 20 + b"1" + b"}" * 21, 422),
        ("/v1/recommend", b'{"user_id": "u", "context": ' + b'{"a":' * 600 + b"1" + b"}" * 601, 422),
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
        ("/v1/events", b'{"events": [1, ' + b"[" * 3000 + b"]" * 3000 + b"]}", 400),
        ("/v1/recommend", b'{"user_id": "u", "context": {"a": "' + b"x" * 65_536 + b'"}}', 422),
        ("/v1/recommend", b"", 422),
        ("/v1/nothing", b"{}", 404),
    ],
)
async def test_a_wrong_body_is_refused_clearly(world: World, path: str, body: bytes, status: int) -> None:
    async with living(world) as w:
        headers = {"content-type": "application/json"}
        answer = await w.client.post(path, content=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]
        if status == 422:
            assert answer.json()["details"][0]["expected"]


async def test_a_mistyped_field_or_route_is_answered_with_the_place_that_lists_them(world: World) -> None:
    async with living(world) as w:
        answer = await w.client.post("/v1/recommend", json={"user_id": 1.5, "filter": {}})
        expected = {each["field"]: each["expected"] for each in answer.json()["details"]}
        assert expected.keys() == {"user_id", "filter"} and "/docs" in expected["filter"]
        nothing = await w.client.post("/v1/recommend", json={})
        assert nothing.json()["details"][0]["expected"] == "a value: the field is required"
        assert "/docs" in (await w.client.get("/v1/recommendations")).json()["error"]


async def test_text_that_is_no_unicode_is_refused(world: World) -> None:
    async with living(world) as w:
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


async def test_many_unknown_fields_are_one_error(world: World) -> None:
    async with living(world) as w:
        answer = await w.client.post("/v1/recommend", json={f"x{n}": 0 for n in range(60)})
        assert answer.status_code == 422
        [detail] = answer.json()["details"]
        assert "60 fields, expected at most 50" in detail["expected"]


@pytest.mark.parametrize("by_profile", [False, True])
async def test_an_engagement_with_an_old_list_without_profiling_enters_no_history(
    world: World, by_profile: bool
) -> None:
    async with living(world) as w:

        async def objects(fields: dict[str, Any]) -> None:
            body = {"users": [{"user_id": "u1", "fields": fields}]}
            assert (await w.client.post("/v1/users", json=body, headers=ADMIN)).json()["accepted"]
            while w.fold.turn():
                pass

        if by_profile:
            await objects({"profiling": False})
        plain = await w.recommend(n=3, profiling=by_profile)
        if by_profile:
            await objects({})
        lists = [plain] + [await w.recommend(n=3) for _ in range(REQUESTS + 1)]
        await w.written()

        async def history() -> list[str]:
            while w.fold.turn():
                pass
            return [e["item_id"] for e in (await w.client.get("/v1/sessions/u1")).json()["recent"]]

        for answer, count in ((plain, 0), (lists[-1], 1)):
            item_id = answer["items"][0]["item_id"]
            event = view(answer["request_id"], item_id, answer["request_id"], token=answer["token"])
            sent = await w.client.post("/v1/events", json={"events": [event]})
            assert (sent.json()["accepted"], sent.json()["unproven"]) == (1, 0)
            assert await history() == [item_id][:count]
