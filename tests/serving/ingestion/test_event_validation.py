"""Events from outside: judged one by one, taken once, long views derived."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config.system_config import Config
from recsys.events.event_types import Engagement, decode
from recsys.events.hashing import partition_of
from serving.ingestion.event_validation import ACCEPTED, DUPLICATE, REJECTED, EventValidator, ValidatedBatch

NOW_MS = 1_790_000_000_000
DURATIONS: dict[Any, float] = {"short": 5_000, "long": 60_000}


@pytest.fixture
def validator() -> EventValidator:
    return EventValidator(Config(), DURATIONS.get, window=100)


def view(item_id: str = "short", watch_ms: int | None = 100, **more: Any) -> dict[str, Any]:
    return {
        "type": "engagement",
        "time_ms": NOW_MS,
        "request_id": "r1",
        "user_id": "u1",
        "item_id": item_id,
        "kind": "view",
        "watch_ms": watch_ms,
    } | more


def take(validator: EventValidator, *events: object, now_ms: int = NOW_MS) -> ValidatedBatch:
    taken = validator.validate(events, now_ms)
    validator.remember(taken)
    return taken


def statuses(taken: ValidatedBatch) -> list[str]:
    return [result.status for result in taken.results]


def kinds(taken: ValidatedBatch) -> list[str]:
    return [event.kind for event in taken.engagements]


@pytest.mark.parametrize(
    ("item_id", "watch_ms", "long"),
    [
        ("short", 2_999, False),
        ("short", 3_000, True),  # 60 % of 5 s
        ("long", 17_999, False),
        ("long", 18_000, True),  # 18 s, before 60 % of 60 s
        ("unknown", 17_999, False),
        ("unknown", 18_000, True),
        ("short", None, False),
    ],
)
def test_a_view_of_most_of_an_item_is_a_long_view(
    validator: EventValidator, item_id: str, watch_ms: int | None, long: bool
) -> None:
    taken = take(validator, view(item_id, watch_ms, event_id="e"))
    assert kinds(taken) == (["long_view", "view"] if long else ["view"])
    if long:
        assert taken.engagements[0].event_id == "e:long_view"
        assert taken.engagements[0].watch_ms == watch_ms


def test_records_are_what_is_taken_in_the_users_partition(validator: EventValidator) -> None:
    taken = take(validator, view(user_id=7), view("long", 20_000, user_id="x"))
    assert [decode(r.value) for r in taken.records] == list(taken.engagements)
    assert [r.partition for r in taken.records] == [partition_of(e.user_id, 4) for e in taken.engagements]
    assert [r.key for r in taken.records] == [b"7", b"x", b"x"]


def test_a_long_view_that_the_client_sends_counts_once(validator: EventValidator) -> None:
    said = view(kind="long_view", event_id="mine")
    taken = take(validator, view(watch_ms=5_000), said)
    assert statuses(taken) == [ACCEPTED, ACCEPTED] and kinds(taken) == ["view", "long_view"]
    assert kinds(take(validator, view(watch_ms=5_000, event_id="again"))) == ["view"]
    other = take(validator, view(watch_ms=5_000, request_id="r2"))
    assert kinds(other) == ["long_view", "view"]
    late = take(validator, view(kind="long_view", request_id="r2", event_id="late"))
    assert statuses(late) == [DUPLICATE]


def test_repeats_are_known_by_id_or_content_within_the_window(validator: EventValidator) -> None:
    assert statuses(take(validator, view(event_id="a"), view(event_id="a"))) == [ACCEPTED, DUPLICATE]
    assert statuses(take(validator, view(), view())) == [ACCEPTED, DUPLICATE]
    assert statuses(take(validator, view(event_id="a"), view())) == [DUPLICATE, DUPLICATE]
    take(validator, *[view(event_id=f"new{i}") for i in range(100)])
    assert statuses(take(validator, view(event_id="a"))) == [ACCEPTED]


def test_what_was_not_committed_is_no_repeat(validator: EventValidator) -> None:
    assert statuses(validator.validate([view(event_id="a")], NOW_MS)) == [ACCEPTED]
    assert statuses(take(validator, view(event_id="a"))) == [ACCEPTED]
    assert statuses(take(validator, view(event_id="a"))) == [DUPLICATE]


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (view(kind="stare"), "kind"),
        (view(watch_ms=-1), "watch_ms"),
        (view(time_ms=NOW_MS + 6_000), "time_ms"),
        (view(time_ms=NOW_MS - 73 * 3_600_000), "time_ms"),
        (view(user_id=None), "user_id"),
        (view(item_id=""), "item_id"),
        (view(request_id=1), "request_id"),
        (view(note="x" * 65_536), "event"),
        (view(watch_ms=2**64), "watch_ms"),
        (view(note=2**70), "note"),
        (view(note="\ud800"), "note"),
        (view(note=float("nan")), "note"),
        ({"type": "impression", "time_ms": 1}, "type"),
        ({"type": "tick", "time_ms": NOW_MS}, "type"),
        ({"type": "item", "time_ms": NOW_MS, "item_id": "v"}, "type"),
        ({"type": "user", "time_ms": NOW_MS, "user_id": "u", "removed": True}, "type"),
        ({}, "type"),
        ([], "event"),
        (None, "event"),
    ],
)
def test_a_wrong_event_is_refused_alone(validator: EventValidator, event: object, field: str) -> None:
    taken = take(validator, view(event_id="before"), event, view(event_id="after"))
    assert statuses(taken) == [ACCEPTED, REJECTED, ACCEPTED]
    assert len(taken.records) == 2
    error = taken.results[1].error
    assert error is not None and error.field == field and error.expected
    assert len(error.value) <= 200


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(_JSON | st.dictionaries(st.sampled_from([*view(), "event_id"]), _JSON), max_size=5))
def test_nothing_that_comes_in_raises(events: list[Any]) -> None:
    taken = EventValidator(Config()).validate([*events, view()], NOW_MS)
    assert [r.index for r in taken.results] == list(range(len(events) + 1))
    assert taken.results[-1].status == ACCEPTED
    assert all(isinstance(decode(r.value), Engagement) for r in taken.records)


def test_only_a_foreign_client_may_tell_the_past_and_no_request(validator: EventValidator) -> None:
    old = view(request_id="", time_ms=NOW_MS - 10 * 365 * 86_400_000, watch_ms=9_000)
    assert statuses(take(validator, old)) == [REJECTED]
    taken = validator.validate([old], NOW_MS, foreign=True)
    assert statuses(taken) == [ACCEPTED] and kinds(taken) == ["long_view", "view"]
    ahead = view(request_id="", time_ms=NOW_MS + 6_000)
    assert statuses(validator.validate([ahead], NOW_MS, foreign=True)) == [REJECTED]


def test_without_a_request_a_long_view_is_known_by_its_view_alone(validator: EventValidator) -> None:
    """The same item may be watched on two days; with a request it is watched once in it."""
    watched = [
        view(request_id="", time_ms=NOW_MS - day, watch_ms=9_000, event_id=f"e{day}")
        for day in (0, 86_400_000)
    ]
    taken = validator.validate(watched, NOW_MS, foreign=True)
    assert kinds(taken) == ["long_view", "view", "long_view", "view"]
    validator.remember(taken)
    assert statuses(validator.validate(watched, NOW_MS, foreign=True)) == [DUPLICATE, DUPLICATE]
