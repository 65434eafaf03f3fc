"""Strict reading of bodies: types, sizes and times; and events that are read one by one."""

import asyncio
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.http import strict_json
from serving.http.strict_json import DECODE_ERRORS, MAX_EVENTS, decode, read_events
from serving.http_app import build_app
from tests.support.serving.service_harness import World, living

_MOST = 999_900  # bytes of a body


def _filled(start: bytes, filler: bytes, end: bytes = b"]}") -> bytes:
    return start + filler * ((_MOST - len(start) - len(end)) // len(filler)) + end


_EVENTS = b'{"events": ['
HOSTILE = {
    "quotes": _filled(_EVENTS, b'"'),
    "unclosed string": _filled(_EVENTS + b'"', b"a"),
    "escaped quotes": _filled(_EVENTS + b'"', b'\\"'),
    "backslashes": _filled(_EVENTS + b'"', b"\\\\"),
    "quote, comma": _filled(_EVENTS, b'",'),
    "open brackets": _filled(_EVENTS, b"["),
    "nested, closed": _EVENTS + b"[" * 490_000 + b"]" * 490_000 + b"]}",
    "empty lists": _filled(_EVENTS + b"[NaN", b",[]", b"]]}"),
    "NaN": _filled(_EVENTS + b"NaN", b",NaN"),
    "digits": _filled(_EVENTS + b"NaN,", b"9"),
    "spaces": _filled(_EVENTS + b"NaN]", b" ", b"x"),
    "distinct fields": b'{"f": 0' + b"".join(b',"%d":0' % n for n in range(90_000)) + b"}",
    "many events": _filled(_EVENTS + b"0", b",0"),
}


def test_docs_show_the_bodies_with_their_limits(tmp_path: Path) -> None:
    schemas = build_app(World(tmp_path).service, lambda: "").openapi()["components"]["schemas"]
    recommend = schemas["RecommendIn"]["properties"]
    assert recommend["n"]["anyOf"][0]["maximum"] == 100
    assert recommend["exclude_ids"]["maxItems"] == 1000
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
async def test_the_content_type_matters(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async with living(World(tmp_path)) as w:
        request = w.client.build_request("POST", "/v1/recommend", content=b'{"user_id": "u"}')
        request.headers.pop("content-type", None)
        request.headers.update(headers)
        answer = await w.client.send(request)
        assert answer.status_code == status, answer.text
        assert status == 200 or "content-type: application/json" in answer.text, "the remedy"


async def test_a_body_in_pieces_is_read_whole(tmp_path: Path) -> None:
    async with living(World(tmp_path)) as w:

        async def pieces() -> Any:
            for piece in (b'{"user_', b'id": ', b'"u", "n": 2}'):
                yield piece
                await asyncio.sleep(0)

        headers = {"content-type": "application/json"}
        answer = await w.client.post("/v1/recommend", content=pieces(), headers=headers)
        assert answer.status_code == 200 and len(answer.json()["items"]) == 2


@pytest.mark.parametrize(
    ("bad", "check"),
    [
        (b'{"watch_ms": NaN}', lambda event: math.isnan(event["watch_ms"])),
        (b'{"watch_ms": 1e999}', lambda event: event["watch_ms"] == math.inf),
        (b'{"note": "\\ud800"}', lambda event: event == {"note": "\ud800"}),
        (b'{"note": ' + b"[" * 8 + b"]" * 8 + b"}", lambda event: event["note"][0][0][0] == [[[[[]]]]]),
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


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In 15 ms of processor time at most; the limit only tells it from half a second or half an hour."""
    matched = list[int]()

    class Counting:
        def match(self, body: bytes, at: int) -> re.Match[bytes] | None:
            event = pattern.match(body, at)
            assert event is not None
            matched.append(event.end() - at)
            return event

    pattern, body = strict_json._EVENT, HOSTILE[name]
    monkeypatch.setattr(strict_json, "_EVENT", Counting())
    began_s = time.process_time()
    read_events(body)
    assert time.process_time() - began_s < 0.3 or name == "empty lists"  # garbage collection
    assert len(matched) <= MAX_EVENTS and sum(matched) <= len(body) <= 1_000_000


@pytest.mark.parametrize("number", ["1e308", "-1e308", "1e-308", "5e-324", "2.2250738585072011e-308"])
def test_a_number_is_decoded_in_the_time_of_its_digits(number: str) -> None:
    def cpu_s(text: str) -> float:
        body, began_s = f"[{','.join([text] * 20_000)}]".encode(), time.process_time()
        assert decode(body)[-1] == float(text)
        return time.process_time() - began_s

    assert min(cpu_s(number) for _ in range(3)) < 15 * min(cpu_s("1.5") for _ in range(3))


@pytest.mark.parametrize("number", ["1e309", "-1e309", "1" * 400 + ".5", "NaN", "Infinity"])
def test_a_number_that_is_not_finite_is_refused(number: str) -> None:
    with pytest.raises(DECODE_ERRORS):
        decode(f"[{number}]".encode())


async def test_a_refused_value_is_shown_in_part(tmp_path: Path) -> None:
    """In the time that it takes to read it: written whole it would take ten times as long."""
    async with living(World(tmp_path)) as w:
        nested = b"[" * 7 + b",".join([b"[1]"] * 10_000) + b"]" * 7
        headers = {"content-type": "application/json"}
        answer = await w.client.post("/v1/recommend", content=b'{"user_id":%b}' % nested, headers=headers)
        (detail, *_) = answer.json()["details"]
        assert answer.status_code == 422 and detail["value"].startswith("[[[") and len(detail["value"]) < 40


def test_no_more_events_are_read_than_one_body_may_have() -> None:
    events = read_events(b'{"events": [NaN' + b", 1" * 600 + b"]}")
    assert events is not None and len(events) == MAX_EVENTS + 1
    assert events[1:MAX_EVENTS] == [1] * (MAX_EVENTS - 1) and events[MAX_EVENTS] is None
    events = read_events(b'{"events": [NaN' + b", 1" * (MAX_EVENTS - 1) + b"]}")
    assert events is not None and len(events) == MAX_EVENTS


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"events": 3}', b'{"events": [1]', b'{"events": [1]] }', b'{"events": [[1]}',
     b'{"other": [1]}', b'{"events": [1], "more": 2}', b'{"events": [1, "]}', b'{"events": [1}]}',
     b'{"events": [NaN, {"a": ' + b"[" * 9 + b"]" * 9 + b"}]}"],
)  # fmt: skip
def test_a_body_that_is_no_list_of_events_is_refused_whole(body: bytes) -> None:
    assert read_events(body) is None
