"""Strict reading of bodies: types, sizes and times; and events that are read one by one."""

import asyncio
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.http.strict_json import MAX_EVENTS, read_events
from serving.http_app import build_app
from tests.support.service_harness import World, run


def test_docs_show_the_bodies_with_their_limits(tmp_path: Path) -> None:
    schemas = build_app(World(tmp_path).service, lambda: "").openapi()["components"]["schemas"]
    recommend = schemas["RecommendIn"]["properties"]
    assert recommend["n"]["maximum"] == 100 and recommend["exclude_ids"]["maxItems"] == 1000
    assert schemas["EventsIn"]["properties"]["events"]["maxItems"] == 500
    assert schemas["RecommendIn"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "APPLICATION/JSON"}, 200),
        ({"content-type": "application/problem+json"}, 200),
        ({"content-type": "text/plain"}, 422),  # a page of another origin sends that unasked
        ({}, 422),
    ],
)
def test_the_content_type_matters(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async def scenario(w: World) -> None:
        request = w.client.build_request("POST", "/v1/recommend", content=b'{"user_id": "u"}')
        request.headers.pop("content-type", None)
        request.headers.update(headers)
        answer = await w.client.send(request)
        assert answer.status_code == status, answer.text

    run(World(tmp_path), scenario)


def test_a_body_in_pieces_is_read_whole(tmp_path: Path) -> None:
    async def scenario(w: World) -> None:
        async def pieces() -> Any:
            for piece in (b'{"user_', b'id": ', b'"u", "n": 2}'):
                yield piece
                await asyncio.sleep(0)

        headers = {"content-type": "application/json"}
        answer = await w.client.post("/v1/recommend", content=pieces(), headers=headers)
        assert answer.status_code == 200 and len(answer.json()["items"]) == 2

    run(World(tmp_path), scenario)


def test_a_body_that_never_comes_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.http.strict_json.BODY_TIMEOUT_S", 0.01)
    app = build_app(World(tmp_path).service, lambda: "")
    scope = {
        "type": "http", "method": "POST", "path": "/v1/recommend", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    sent: list[Any] = []

    async def scenario() -> None:
        async def silent() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, silent, send)

    asyncio.run(scenario())
    assert sent[0]["status"] == 408
    assert "didn't come within" in json.loads(sent[1]["body"])["error"]


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (b'{"watch_ms": NaN}', lambda event: math.isnan(event["watch_ms"])),
        (b'{"watch_ms": 1e999}', lambda event: event["watch_ms"] == math.inf),
        (b'{"note": "\\ud800"}', lambda event: event == {"note": "\ud800"}),
        (b'{"note": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", lambda event: isinstance(event, str)),
        (b'{"kind": view}', lambda event: isinstance(event, str)),
        (b'{"note": "\xff"}', lambda event: isinstance(event, str)),
    ],
)
def test_a_bad_event_costs_itself_alone(bad: bytes, check: Callable[[Any], bool]) -> None:
    body = b'{"events": [{"a": "x,]\\"}"}, ' + bad + b', {"b": [1, {"c": 2}]}]}'
    events = read_events(body)
    assert events is not None
    first, middle, last = events
    assert first == {"a": 'x,]"}'} and last == {"b": [1, {"c": 2}]}
    assert check(middle)


@pytest.mark.parametrize(
    "filler", [b'\\"', b"\\\\", b'"', b",", b'",', b"]}", b"["], ids=lambda filler: filler.decode()
)
def test_a_hostile_body_is_read_in_linear_time(filler: bytes) -> None:
    body = b'{"events": ["' + filler * (1_000_000 // len(filler)) + b"]}"
    began_s = time.process_time()
    read_events(body)
    assert time.process_time() - began_s < 5  # 0.6 s at most; a quadratic scan takes half an hour


def test_events_behind_a_string_that_never_ends_are_cut_at_brackets() -> None:
    body = b'{"events": [{"a": 1}, {"b": "x}, [\\"c\\", 2], {}]}'
    assert read_events(body) == [{"a": 1}, ' {"b": "x}', ' [\\"c\\", 2]', {}]


def test_no_more_events_are_read_than_one_body_may_have() -> None:
    events = read_events(b'{"events": [NaN' + b", 1" * 600 + b"]}")
    assert events is not None and len(events) == 601
    assert events[1:MAX_EVENTS] == [1] * (MAX_EVENTS - 1) and events[MAX_EVENTS] is None


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"events": 3}', b'{"events": [1]', b'{"events": [1]] }', b'{"events": [[1]}',
     b'{"other": [1]}', b'{"events": [1], "more": 2}'],
)  # fmt: skip
def test_a_body_that_is_no_list_of_events_is_refused_whole(body: bytes) -> None:
    assert read_events(body) is None
