"""Reading the log backwards: newest first, each once, bounded, and nothing of who was forgotten."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.gorse_and_metarank import newest_events
from plugins.gorse_and_metarank.newest_events import UserRecord, read_page, read_user, read_users
from recsys.events.event_types import Engagement, Event, Tick, User, encode
from recsys.events.records import EVENTS, topics
from recsys.log.protocol import Append, MemoryLog, Record

PARTS = 2


def log_of(*events: tuple[int, Event]) -> MemoryLog:
    """A log with events by partition, in order."""
    log = MemoryLog()
    for topic in topics(PARTS):
        log.create(topic)
    for partition, event in events:
        key = str(getattr(event, "user_id", "")).encode()
        log.append(EVENTS, [Append(partition, key, encode(event))])
    return log


def deed(time_ms: int, user: str = "u0", item: str = "v0", **more: Any) -> Engagement:
    return Engagement(time_ms=time_ms, request_id="", user_id=user, item_id=item, kind="like", **more)


def all_pages(log: MemoryLog, n: int) -> list[int]:
    told, before = list[int](), None
    while True:
        page = read_page(log, n, lambda _: True, before)
        told += [one.time_ms for one in page.engagements]
        if (before := page.before) is None:
            return told
        assert len(page.engagements) == n, "a page is short only at the end"


@given(st.lists(st.tuples(st.integers(0, PARTS - 1), st.booleans()), max_size=40), st.integers(1, 7))
def test_pages_are_all_of_it_once_and_newest_first(places: list[tuple[int, bool]], n: int) -> None:
    events: list[tuple[int, Event]] = [
        (part, Tick(time_ms=at) if tick else deed(at, f"u{part}")) for at, (part, tick) in enumerate(places)
    ]
    wanted = [event.time_ms for _, event in reversed(events) if isinstance(event, Engagement)]
    assert all_pages(log_of(*events), n) == wanted


def test_no_more_is_looked_at_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(*[(0, deed(at)) for at in range(1_200)])
    size = len(log.read(EVENTS, 0, 0, 1)[0].value)
    monkeypatch.setattr(newest_events, "MOST_RECORDS", 700 * PARTS)
    assert all_pages(log, 50) == list(range(1_199, 499, -1))
    monkeypatch.setattr(newest_events, "MOST_BYTES", 10 * (size + 1) * PARTS)
    assert all_pages(log, 50)[-1] >= 1_189


def test_repeats_come_once_and_nothing_comes_of_who_was_forgotten() -> None:
    twice = deed(3, event_id="e")
    gone = [(1, deed(4, "u1")), (1, User(time_ms=5, user_id="u1", removed=True)), (1, deed(6, "u1"))]
    log = log_of((0, twice), (0, twice), *gone)
    assert [one.time_ms for one in read_page(log, 9, lambda _: True).engagements] == [6, 3]
    one_by_one = all_pages(log, 1)
    assert 4 not in one_by_one, "nor on a page after the wish"
    of_one = read_page(log, 9, lambda _: True, partition=1, key=b"u1")
    assert [one.time_ms for one in of_one.engagements] == [6]


def test_the_newest_profile_is_found_and_what_cant_be_read_is_passed_over() -> None:
    log = log_of(*[(0, User(time_ms=at, user_id="u0", fields={"age": at})) for at in (1, 2)])
    log.append(EVENTS, [Append(0, b"u0", b"\xff no event"), Append(0, b"u1", encode(deed(3, "u1")))])
    found = read_user(log, 0, b"u0")
    assert found is not None and found.profile is not None and found.profile.fields == {"age": 2}
    assert read_user(log, 0, b"u1") == UserRecord(None, False) and read_user(log, 1, b"u0") is None


def test_users_are_those_of_their_newest_profile_wish_or_deed() -> None:
    def profile(at: int, user: str, **fields: Any) -> User:
        return User(time_ms=at, user_id=user, fields=fields)

    def wish(at: int, user: str) -> User:
        return User(time_ms=at, user_id=user, removed=True)

    log = log_of(
        (0, profile(1, "u0", age=1)), (0, deed(2, "u0")), (0, profile(3, "u0", age=2)), (0, deed(4, "u0")),
        (1, deed(5, "doer")), (1, profile(6, "gone", age=3)), (1, deed(7, "gone")), (1, wish(8, "gone")),
        (0, profile(9, "back", age=4)), (0, wish(10, "back")), (0, deed(11, "back")),
        (1, wish(12, "anew")), (1, profile(13, "anew", age=5)), (1, Tick(time_ms=14)),
    )  # fmt: skip
    users = read_users(log)
    fields = {user: its.profile and its.profile.fields for user, its in users.items()}
    assert fields == {"u0": {"age": 2}, "doer": None, "back": None, "anew": {"age": 5}}
    assert [user for user, its in users.items() if not its.certain] == ["doer"]
    for part, user in ((0, "u0"), (1, "doer"), (0, "back"), (1, "anew")):
        assert read_user(log, part, user.encode()) == users[user], "one is told as in the list"
    assert read_user(log, 1, b"gone") == UserRecord(None, True, gone=True)


class ShortReads(MemoryLog):
    """Gives less than it is asked for, as a broker does whose answer has a size."""

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        return super().read(topic, partition, offset, min(limit, 7))


def test_a_log_that_reads_short_is_read_whole() -> None:
    log = ShortReads()
    for topic in topics(1):
        log.create(topic)
    told = [deed(at) for at in range(1_200)]
    gone = [deed(1_200, "u1"), User(time_ms=1_201, user_id="u1", removed=True)]
    later = [deed(at) for at in range(1_202, 1_300)]
    log.append(EVENTS, [Append(0, b"k", encode(event)) for event in [*told, *gone, *later]])
    assert all_pages(log, 50) == [*range(1_299, 1_201, -1), *range(1_199, -1, -1)]


def test_a_place_of_another_log_is_refused() -> None:
    with pytest.raises(ValueError, match="3 offsets, expected 2"):
        read_page(log_of(), 1, lambda _: True, (1, 2, 3))
