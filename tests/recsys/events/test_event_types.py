"""Events from outside: what is read, and how it is said what isn't."""

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.event_types import (
    ENGAGEMENT_KINDS,
    MAX_TIME_MS,
    TYPES,
    Engagement,
    Event,
    FeatureBlock,
    Impression,
    Item,
    Rejected,
    ServedItem,
    Stamp,
    Tick,
    User,
    decode,
    encode,
    event_id_of,
    parse,
)
from recsys.events.rejection import show

VIEW: dict[str, Any] = {
    "type": "engagement",
    "time_ms": 1_700_000_000_000,
    "request_id": "r1",
    "user_id": "u1",
    "item_id": 7,
    "kind": "view",
    "watch_ms": 3000,
}
SHOWN: dict[str, Any] = {
    "type": "impression",
    "time_ms": 1_700_000_000_000,
    "request_id": "r1",
    "user_id": "u1",
    "items": [{"item_id": "v1"}, {"item_id": 7, "propensity": 0.25, "sources": ["fresh"]}],
}
ITEM: dict[str, Any] = {"type": "item", "time_ms": 0, "item_id": "v1", "fields": {"tags": [1, 2]}}


def rejected(raw: object, **limits: int) -> str:
    with pytest.raises(Rejected) as caught:
        parse(raw, **limits)
    return str(caught.value)


def test_a_whole_event_is_read() -> None:
    view = parse(VIEW)
    assert view == Engagement(
        time_ms=1_700_000_000_000, request_id="r1", user_id="u1", item_id=7, kind="view", watch_ms=3000
    )
    shown = parse(SHOWN)
    assert isinstance(shown, Impression)
    assert [s.item_id for s in shown.items] == ["v1", 7]
    assert shown.items[1].propensity == 0.25


def test_unknown_fields_are_ignored_so_that_the_schema_can_grow() -> None:
    assert parse(VIEW | {"later": {"x": [1]}}) == parse(VIEW)


def test_only_the_request_of_an_engagement_may_be_unknown() -> None:
    assert parse(VIEW | {"request_id": ""}, unattributed=True).request_id == ""  # type: ignore[union-attr]
    for other in (VIEW | {"user_id": ""}, SHOWN | {"request_id": ""}):
        with pytest.raises(Rejected, match='_id is ""'):
            parse(other, unattributed=True)
    with pytest.raises(Rejected, match='request_id is ""'):
        parse(VIEW | {"request_id": ""})


def test_integers_are_shown_up_to_128_bits() -> None:
    assert show(2**128 - 1) == str(2**128 - 1)
    assert show(2**128) == "an integer of 129 bits"


@pytest.mark.parametrize("kind", ENGAGEMENT_KINDS)
def test_every_kind_of_engagement_is_read(kind: str) -> None:
    event = parse(VIEW | {"kind": kind})
    assert isinstance(event, Engagement) and event.kind == kind


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time_ms": "x"}, 'time_ms is "x", expected an integer'),
        ({"time_ms": None}, "time_ms is null, expected an integer"),
        ({"time_ms": True}, "time_ms is true, expected an integer"),
        ({"time_ms": 1.5}, "time_ms is 1.5, expected an integer"),
        ({"time_ms": -1}, "time_ms is -1, expected milliseconds since 1970, up to the year 9999"),
        (
            {"time_ms": MAX_TIME_MS + 1},
            f"time_ms is {MAX_TIME_MS + 1}, expected milliseconds since 1970, up to the year 9999",
        ),
        ({"user_id": 1.0}, "user_id is 1.0, expected an integer or text"),
        ({"user_id": ["u"]}, 'user_id is ["u"], expected an integer or text'),
        ({"user_id": ""}, 'user_id is "", expected an id of 1 to 256 characters'),
        ({"item_id": ""}, 'item_id is "", expected an id of 1 to 256 characters'),
        ({"request_id": ""}, 'request_id is "", expected an id of 1 to 256 characters'),
        ({"event_id": ""}, 'event_id is "", expected an id of 1 to 256 characters'),
        ({"request_id": 5}, "request_id is 5, expected text"),
        ({"item_id": 2**63}, f"item_id is {2**63}, expected an integer of at most 64 bits"),
        ({"watch_ms": -1}, "watch_ms is -1, expected milliseconds, not negative"),
        ({"watch_ms": "3"}, 'watch_ms is "3", expected an integer or null'),
        ({"kind": "stare"}, f'kind is "stare", expected one of {", ".join(ENGAGEMENT_KINDS)}'),
        ({"kind": None}, "kind is null, expected text"),
        (
            {"surface": "\x1b[2J"},
            'surface is "\\u001b[2J", expected an id without control characters, such as newlines',
        ),
        ({"type": "swipe"}, f'type is "swipe", expected one of {", ".join(TYPES)}'),
        ({"type": 5}, f"type is 5, expected one of {', '.join(TYPES)}"),
        ({"type": ["item"]}, f'type is ["item"], expected one of {", ".join(TYPES)}'),
    ],
)
def test_what_is_wrong_is_said_in_words(change: dict[str, Any], said: str) -> None:
    assert rejected(VIEW | change) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"items": {}}, "items is {}, expected a list"),
        ({"items": [{}]}, "items[0].item_id is missing, expected a value: the field is required"),
        (
            {"items": [{"item_id": 1}, {"item_id": ""}]},
            'items[1].item_id is "", expected an id of 1 to 256 characters',
        ),
        ({"items": [{"item_id": 1, "score": "x"}]}, 'items[0].score is "x", expected a number or null'),
        (
            {"items": [{"item_id": 1, "propensity": 0}]},
            "items[0].propensity is 0.0, expected a probability above 0, at most 1",
        ),
        (
            {"items": [{"item_id": 1, "propensity": 1.01}]},
            "items[0].propensity is 1.01, expected a probability above 0, at most 1",
        ),
        ({"stamp": 5}, "stamp is 5, expected a JSON object or null"),
        (
            {"features": {"feature_set": "x", "dense": "!!"}},
            'features.dense is "!!", expected bytes in base64',
        ),
        ({"context": [1]}, "context is [1], expected a JSON object"),
    ],
)
def test_what_is_wrong_inside_is_pointed_at(change: dict[str, Any], said: str) -> None:
    assert rejected(SHOWN | change) == said


@pytest.mark.parametrize("field", ["time_ms", "request_id", "user_id", "item_id", "kind"])
def test_a_missing_field_is_named(field: str) -> None:
    raw = {name: value for name, value in VIEW.items() if name != field}
    assert rejected(raw) == f"{field} is missing, expected a value: the field is required"


def test_a_missing_type_is_named() -> None:
    assert rejected({}) == f"type is missing, expected one of {', '.join(TYPES)}"
    for raw in (None, 5, "item", [VIEW], b"{}"):
        assert rejected(raw).endswith("expected a JSON object with a 'type'")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), json.loads("1e400")])
def test_numbers_that_poison_arithmetic_are_refused(value: float) -> None:
    said = rejected(ITEM | {"fields": {"embedding": [0.5, {"x": value}]}})
    assert said == f"fields.embedding[1].x is {json.dumps(value)}, expected a finite number"


def test_integers_that_the_log_cannot_hold_are_refused() -> None:
    parse(ITEM | {"fields": {"a": 2**63 - 1, "b": -(2**63)}})
    for value in (2**63, -(2**63) - 1, 10**5000):
        assert "expected an integer of at most 64 bits" in rejected(ITEM | {"fields": {"a": value}})
    assert "an integer of 16610 bits" in rejected(ITEM | {"fields": {"a": 10**5000}})


def test_text_that_is_not_unicode_is_refused() -> None:
    half = json.loads('"\\ud800"')
    assert rejected(VIEW | {"user_id": half}).startswith(r'user_id is "\ud800", expected text in')
    assert "field names" in rejected(ITEM | {"fields": {half: 1}})
    assert parse(VIEW | {"user_id": "ü🎬"}) is not None


def test_deep_nesting_is_refused_at_any_depth() -> None:
    def nested(levels: int) -> Any:
        value: Any = 1
        for _ in range(levels):
            value = [value]
        return value

    parse(ITEM | {"fields": {"a": nested(6)}})  # the event and its fields are two levels
    assert "levels of nesting" in rejected(ITEM | {"fields": {"a": nested(7)}})
    for levels in (1_000, 100_000):
        deep = nested(levels)
        assert "levels of nesting" in rejected(ITEM | {"fields": {"a": deep}})
        assert "a JSON object with a 'type'" in rejected(deep)
        while isinstance(deep, list):  # taken apart here: freeing it whole nests as deep
            deep = deep.pop()


def test_times_are_bounded_where_a_clock_is_given() -> None:
    now_ms = VIEW["time_ms"]
    assert parse(VIEW, now_ms=now_ms - 5_000) is not None
    assert rejected(VIEW, now_ms=now_ms - 5_001) == (
        f"time_ms is {now_ms}, expected at most {now_ms - 1}, 5 s after now: set the clock"
    )
    assert parse(VIEW, oldest_ms=now_ms) is not None
    assert rejected(VIEW, oldest_ms=now_ms + 1) == (
        f"time_ms is {now_ms}, expected at least {now_ms + 1}: older events are not taken"
    )
    assert parse(VIEW | {"time_ms": 0}) is not None  # a data set of the past


@settings(max_examples=30, deadline=None)
@given(st.text(min_size=300), st.integers(2**200, 2**300))
def test_what_is_shown_of_a_value_is_short(text: str, number: int) -> None:
    for value in ([text] * 100, {text: {text: text}}, number, [[[[[[number]]]]]], text.encode()):
        error = Rejected(text, value, "less")
        assert len(error.value) <= 80 and len(error.field) <= 80


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs", "L"]), max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = sorted(
    {*VIEW, *SHOWN, *ITEM, "context", "stamp", "features", "removed", "event_id", "degraded", "v"}
)
nearly_events = st.builds(
    lambda base, changes, dropped: {
        name: value for name, value in (base | changes).items() if name not in dropped
    },
    st.sampled_from([VIEW, SHOWN, ITEM, ITEM | {"type": "user"}, {"type": "tick"}]),
    st.dictionaries(st.sampled_from(FIELDS), any_json, max_size=3),
    st.sets(st.sampled_from(FIELDS), max_size=1),
)


@settings(max_examples=150, deadline=None)
@given(any_json | nearly_events)
def test_any_json_value_is_read_or_rejected_and_what_is_read_fits_the_log(raw: Any) -> None:
    try:
        event = parse(raw)
    except Rejected as error:
        str(error).encode()
        return
    assert decode(encode(event)) == event
    assert parse(msgspec.to_builtins(event)) == event
    assert event_id_of(event)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_rejected(raw: bytes) -> None:
    try:
        decode(raw)
    except Rejected as error:
        str(error).encode()


@settings(max_examples=150, deadline=None)
@given(nearly_events, st.data())
def test_a_record_of_the_log_that_was_harmed_is_read_or_rejected(raw: Any, data: Any) -> None:
    try:
        record = bytearray(encode(parse(raw)))
    except Rejected:
        return
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(bytes(record))
    except Rejected as error:
        assert len(str(error)) < 500


ids = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=9) | st.integers(
    -(2**63), 2**63 - 1
)
times = st.integers(0, MAX_TIME_MS)
events = st.one_of(
    st.builds(Tick, time_ms=times),
    st.builds(Item, time_ms=times, item_id=ids, removed=st.booleans()),
    st.builds(User, time_ms=times, user_id=ids, event_id=st.none() | st.just("e")),
    st.builds(
        Engagement,
        time_ms=times,
        request_id=st.just("r"),
        user_id=ids,
        item_id=ids,
        kind=st.sampled_from(ENGAGEMENT_KINDS),
        watch_ms=st.none() | st.integers(0, 10**6),
    ),
    st.builds(
        Impression,
        time_ms=times,
        request_id=st.just("r"),
        user_id=ids,
        items=st.lists(st.builds(ServedItem, item_id=ids), max_size=3),
        stamp=st.none() | st.builds(Stamp, arms=st.just({"exp": "a"})),
        features=st.none() | st.builds(FeatureBlock, feature_set=st.just("f"), dense=st.binary()),
    ),
)


@settings(deadline=None)
@given(events)
def test_every_event_comes_back_from_the_log_and_from_json(event: Event) -> None:
    assert decode(encode(event)) == event
    assert parse(msgspec.json.decode(msgspec.json.encode(event))) == event


def test_a_repeat_has_the_same_id_and_another_event_has_not() -> None:
    first, again = parse(VIEW), parse(dict(reversed(VIEW.items())))
    assert event_id_of(first) == event_id_of(again)
    assert event_id_of(first) != event_id_of(parse(VIEW | {"watch_ms": 3001}))
    assert event_id_of(parse(VIEW | {"event_id": "mine"})) == "mine"


def test_importing_the_words_imports_nothing_heavy() -> None:
    code = (
        "import recsys.events.event_types, sys; "
        "print([m for m in ('torch', 'ray', 'kafka') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_an_impression_of_before_what_was_asked_was_said_is_read() -> None:
    raw = {"type": "impression", "time_ms": 1, "request_id": "r", "user_id": "u", "items": []}
    event = decode(msgspec.msgpack.encode(raw))
    assert isinstance(event, Impression) and event.inputs is None
