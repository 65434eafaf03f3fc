"""Several workers fold the sessions that one folds, whatever their number and whenever it changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.memory_sessions import MemorySessions, MemoryShare
from recsys.events.control_records import Erasure
from recsys.events.event_types import Engagement, Event, Item, User, encode
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EVENTS, ITEMS, pack, topics
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.log.protocol import Append, MemoryLog
from recsys.process.worker_share import WHOLE, Share
from serving.sessions.session_loop import SessionLoop
from serving.sessions.session_store import FoldPosition, PositionConflict, joined_position

FEATURES = FeatureSet(FEED_SCHEMA)
NOW_MS = 1_790_000_000_000
PARTITIONS = 8
USERS = [f"u{number}" for number in range(12)]


def new_log() -> MemoryLog:
    log = MemoryLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    item = Item(time_ms=1, item_id="v0", fields={"author": "a0", "tags": ["t0"]})
    log.append(ITEMS, [Append(0, b"", encode(item))])
    return log


def append(log: MemoryLog, *events: Event) -> None:
    for event in events:
        partition = partition_of(getattr(event, "user_id", 0), PARTITIONS)
        log.append(EVENTS, [Append(partition, b"", encode(event))])


def view(number: int, user: str) -> Engagement:
    return Engagement(
        time_ms=NOW_MS + number, request_id="r", user_id=user, item_id=f"v{number % 3}", kind="view",
        watch_ms=500, event_id=f"e{number}",
    )  # fmt: skip


def erase(log: MemoryLog, user: str) -> None:
    offset = log.end(EVENTS, partition_of(user, PARTITIONS))
    log.append(CONTROL, [Append(0, b"", pack(Erasure(user_id=user, offset=offset)))])
    append(log, User(time_ms=NOW_MS + offset, user_id=user, removed=True))


def worker(log: MemoryLog, sessions: MemorySessions, share: Share) -> SessionLoop:
    """A worker as it is after its process was started (again)."""
    store = MemoryShare(sessions, share, PARTITIONS)
    return SessionLoop(log, store, FEATURES, now_ms=lambda: NOW_MS, share=share)


def drain(log: MemoryLog, sessions: MemorySessions, workers: int) -> None:
    for index in range(workers):
        loop = worker(log, sessions, Share(index, workers))
        while loop.turn():
            pass


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_fold_the_sessions_of_one(workers: int) -> None:
    log, alone, shared = new_log(), MemorySessions(), MemorySessions()
    append(log, *(view(number, USERS[number % 12]) for number in range(60)))
    erase(log, "u3")
    append(log, view(60, "u3"), view(61, "u5"))
    drain(log, alone, 1)
    drain(log, shared, workers)
    assert shared.blobs == alone.blobs and len(alone.blobs) == len(USERS)


def test_a_worker_folds_and_holds_its_partitions_only() -> None:
    log, sessions = new_log(), MemorySessions()
    append(log, *(view(number, USERS[number % 12]) for number in range(12)))
    erase(log, "u0")
    log.append(CONTROL, [Append(0, b"", pack(Erasure(user_id="u1", offset=1 << 40)))])
    sessions.blobs = {user: b"another worker's" for user in USERS}
    share = Share(1, 2)
    loop = worker(log, sessions, share)
    loop.turn()
    others = {user for user in USERS if partition_of(user, PARTITIONS) % 2 == 0}
    assert others and {u for u, b in sessions.blobs.items() if b == b"another worker's"} == others
    assert [offset >= 0 for offset in loop.offsets] == [False, True] * 4
    holds = [bool(log.holds(EVENTS, partition)) for partition in range(PARTITIONS)]
    assert holds == [False, True] * 4


def test_a_second_worker_of_a_partition_is_refused() -> None:
    log, sessions = new_log(), MemorySessions()
    one, other = (worker(log, sessions, Share(0, 2)) for _ in range(2))
    alone = worker(log, sessions, WHOLE)
    for number, loop in enumerate((one, other, alone)):
        append(log, *(view(12 * number + n, user) for n, user in enumerate(USERS)))
        loop.turn()
    append(log, *(view(50 + n, user) for n, user in enumerate(USERS)))
    for loop in (one, other):
        with pytest.raises(PositionConflict, match="another process folds too"):
            loop.turn()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 7), st.booleans()), max_size=8))
def test_whenever_the_number_of_workers_changes_nothing_is_lost_or_folded_twice(
    changes: list[tuple[int, int, bool]],
) -> None:
    log, alone, shared = new_log(), MemorySessions(), MemorySessions()
    number = 0
    for workers, limit, erases in changes:
        for _ in range(9):
            append(log, view(number, USERS[number * 7 % 12]))
            number += 1
        if erases:
            erase(log, USERS[number % 12])
        for index in range(0, workers, 2):  # each other worker does a turn, then all die
            worker(log, shared, Share(index, workers)).turn(limit)
    drain(log, shared, 3)
    drain(log, alone, 1)
    assert shared.blobs == alone.blobs


def test_the_furthest_place_of_a_partition_counts() -> None:
    whole = FoldPosition("log", [4, 9, 1], 2)
    places = {0: FoldPosition("log", [6], 3), 2: FoldPosition("log", [1], 5)}
    assert joined_position(whole, places, 3) == FoldPosition("log", [6, -1, 1], 3)
    assert joined_position(whole, {1: None}, 3) == FoldPosition("log", [-1, 9, -1], 2)
    assert joined_position(None, {0: places[0], 1: None}, 3) == FoldPosition("log", [6, -1, -1], -1)
    assert joined_position(None, {0: None}, 3) is None
