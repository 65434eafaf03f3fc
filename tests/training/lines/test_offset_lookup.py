"""Searching a topic by time: among records in order, beside a past that was imported, and beside rubbish."""

from typing import Any

import pytest

from recsys.events.event_types import Engagement, Impression, Tick, encode
from recsys.events.records import EVENTS
from recsys.log.protocol import Append, MemoryLog, Topic
from training.lines import offset_lookup as by_time
from training.lines.offset_lookup import first_at, served_ms_of

DAY_MS = 86_400_000
NOW_MS = 100 * DAY_MS


def log_of(events: list[Any]) -> MemoryLog:
    log = MemoryLog()
    log.create(Topic(EVENTS, 1))
    log.append(EVENTS, [Append(0, b"", e if isinstance(e, bytes) else encode(e)) for e in events])
    return log


def shown(ms: int) -> Impression:
    return Impression(time_ms=ms, request_id=f"r{ms}", user_id="u", items=[])


def done(ms: int) -> Engagement:
    return Engagement(time_ms=ms, request_id="", user_id="u", item_id="v", kind="like")


def found(log: MemoryLog, ms: int) -> int:
    return first_at(log, EVENTS, 0, ms, served_ms_of)


def test_the_first_of_a_time_is_found() -> None:
    log = log_of([shown(10), Tick(time_ms=20), shown(30), shown(30), shown(40)])
    assert [found(log, ms) for ms in (0, 10, 11, 20, 30, 31, 41)] == [0, 0, 1, 1, 2, 4, 5]
    assert found(log_of([]), 7) == 0


@pytest.mark.parametrize("imported_at", [1, 100, 150, 199])
def test_a_past_that_was_imported_leads_nobody_astray(imported_at: int) -> None:
    """Halving lands among engagements of 40 days ago: what was served around them says when they came."""
    served = [shown(NOW_MS + n) for n in range(200)]
    past = [done(NOW_MS - 40 * DAY_MS + n) for n in range(4_000)]
    log = log_of(served[:imported_at] + past + served[imported_at:])
    for ms in (0, 1, 99, 100, 101, 150, 199):
        exact = ms if ms <= imported_at else ms + len(past)  # what is imported belongs to what follows
        assert found(log, NOW_MS + ms) == exact
    assert found(log, NOW_MS - DAY_MS) == 0


def test_only_so_many_are_passed_over_and_then_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of([shown(1), shown(2), *[done(9)] * 50, shown(3), shown(4)])
    assert found(log, 3) == 2 and found(log, 4) == 53
    monkeypatch.setattr(by_time, "_MOST_PASSED", 10)
    assert found(log, 3) == 2
    assert found(log, 4) == 2  # not 53, and nothing is missing


def test_what_cannot_be_read_is_passed_over_as_what_has_no_time() -> None:
    log = log_of([shown(1), b"", b"\xff", shown(2), b"", shown(3)])
    assert (found(log, 2), found(log, 3)) == (1, 4)


def test_a_time_that_cannot_be_read_finds_too_much() -> None:
    def read(value: bytes) -> int | None:
        event = by_time._served.decode(value)
        return event.time_ms

    log = log_of([shown(1), shown(2), done(0), shown(3), shown(4)])
    assert first_at(log, EVENTS, 0, 4, read) == 2  # where the one stands that can't be read
