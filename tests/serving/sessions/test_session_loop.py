"""The fold of events into sessions: exactly once, whatever fails where."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.memory_sessions import MemorySessions
from recsys.app.set_loops import SetLoops
from recsys.config.system_config import Config
from recsys.events.control_records import ALONE, FOLDED, Definition, Erasure
from recsys.events.event_types import (
    Engagement,
    Event,
    Impression,
    Item,
    Preference,
    ServedItem,
    Tick,
    User,
    encode,
)
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EVENTS, ITEMS, pack, topics
from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet, set_text
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.features.session import Session
from recsys.log.protocol import Append, LogLost, MemoryLog
from recsys.process.part_process import Stop
from serving.sessions import session_loop
from serving.sessions.session_loop import SessionLoop
from serving.sessions.session_store import FoldPosition, PositionConflict, StoreUnavailable

FEATURES = FeatureSet(FEED_SCHEMA)
NOW_MS = 1_790_000_000_000


class Fixture:
    def __init__(self) -> None:
        self.log = MemoryLog()
        for topic in topics(4):
            self.log.create(topic)
        self.sessions = MemorySessions()
        self.now_ms = NOW_MS

    def loop(self, store: Any = None) -> SessionLoop:
        """A fold as it is after its process was started (again)."""
        fold = store or self.sessions
        return SessionLoop(self.log, fold, FEATURES, now_ms=lambda: self.now_ms)

    def append(self, *events: Event) -> None:
        for event in events:
            if isinstance(event, Item):
                self.log.append(ITEMS, [Append(0, b"", encode(event))])
            else:
                user = getattr(event, "user_id", 0)
                self.log.append(EVENTS, [Append(partition_of(user, 4), b"", encode(event))])

    def erase(self, user_id: str) -> None:
        """For all that stands there; the tombstone isn't folded yet."""
        offset = self.log.end(EVENTS, partition_of(user_id, 4))
        self.log.append(CONTROL, [Append(0, b"", pack(Erasure(user_id=user_id, offset=offset)))])

    def session(self, user_id: Any) -> Session | None:
        blob = self.sessions.blobs.get(str(user_id))
        return None if blob is None else Session.unpack(blob, FEATURES)


@pytest.fixture
def fixture() -> Fixture:
    return Fixture()


def turn_all(loop: SessionLoop, limit: int = 1_000) -> None:
    while loop.turn(limit):
        pass


def item(i: int) -> Item:
    return Item(time_ms=1, item_id=f"v{i}", fields={"author": f"a{i % 3}", "tags": [f"t{i % 4}"]})


def impression(user: Any = "u1", request: str = "r1", count: int = 3) -> Impression:
    items = [ServedItem(item_id=f"v{i}") for i in range(count)]
    return Impression(time_ms=NOW_MS, request_id=request, user_id=user, items=items)


def engagement(user: Any = "u1", i: int = 0, kind: str = "view", **more: Any) -> Engagement:
    about = {"time_ms": NOW_MS, "request_id": "r1", "item_id": f"v{i}", "watch_ms": 500} | more
    return Engagement(user_id=user, kind=kind, **about)


def test_events_become_sessions(fixture: Fixture) -> None:
    fixture.append(
        item(0),
        User(time_ms=NOW_MS, user_id="u1", fields={"country": "NZ"}),
        impression(),
        engagement(kind="like"),
        engagement(),
        engagement("u2", 1),
        Tick(time_ms=NOW_MS),
    )
    loop = fixture.loop()
    assert loop.turn() == 6
    assert loop.turn() == 0
    first, second = fixture.session("u1"), fixture.session("u2")
    assert first is not None and second is not None
    assert first.events == 2 and second.events == 1
    assert first.profile == FEATURES.profile_keys({"country": "NZ"})
    assert first.history[0].keys == FEATURES.history_entry(
        FEATURES.item_keys("v0", {"author": "a0", "tags": ["t0"]})
    )
    assert second.history[0].keys[0] == FEATURES.item_keys("v1", {})[0]
    assert loop.delays.percentile(1.0) == 0


def test_an_event_that_comes_twice_counts_once(fixture: Fixture) -> None:
    same = engagement(event_id="e1")
    fixture.append(same, same)
    loop = fixture.loop()
    turn_all(loop)
    fixture.append(same)
    turn_all(loop)
    turn_all(fixture.loop())
    restarted = fixture.loop()
    fixture.append(same, engagement(i=1, event_id="e2"))
    turn_all(restarted)
    session = fixture.session("u1")
    assert session is not None and session.events == 2
    assert restarted.events.repeats == 1


def test_7_and_text_7_are_one_user(fixture: Fixture) -> None:
    fixture.append(engagement(7, event_id="a"), engagement("7", event_id="b"))
    turn_all(fixture.loop())
    session = fixture.session(7)
    assert session is not None and session.events == 2


def test_what_cannot_be_read_is_counted_and_passed(fixture: Fixture) -> None:
    fixture.log.append(EVENTS, [Append(partition_of("u1", 4), b"", b"\xc1 not an event")])
    fixture.append(engagement())
    loop = fixture.loop()
    turn_all(loop)
    assert loop.events.unreadable == 1 and fixture.session("u1") is not None


def test_a_blob_that_cannot_be_read_is_begun_anew_and_counted(fixture: Fixture) -> None:
    fixture.sessions.blobs["u1"] = b"\x00 not a session"
    fixture.append(engagement())
    loop = fixture.loop()
    turn_all(loop)
    session = fixture.session("u1")
    assert session is not None and session.events == 1 and loop.unreadable == 1


def test_an_erasure_removes_the_session_and_a_tombstone_what_came_before_it(fixture: Fixture) -> None:
    fixture.append(engagement(), engagement("u2"))
    loop = fixture.loop()
    turn_all(loop)
    fixture.erase("u1")
    turn_all(loop)
    assert fixture.session("u1") is None and fixture.session("u2") is not None
    removed = User(time_ms=NOW_MS, user_id="u2", removed=True)
    fixture.append(engagement("u2", 1), removed)
    turn_all(loop)
    assert fixture.session("u2") is None
    fixture.append(engagement("u2", 2, event_id="later"))
    turn_all(loop)
    again = fixture.session("u2")
    assert again is not None and again.events == 1


def test_a_change_of_features_folds_all_again_and_an_erasure_reaches_both(fixture: Fixture) -> None:
    """The log of several stages: two sets are folded, then the new one is alone."""
    wide = replace(FEATURES, declared=Declared(half_lives_h=(1.0, 6.0, 336.0)))
    new, log = fixture.sessions.of_set(wide.digest), fixture.log

    def make(name: str, features: FeatureSet) -> SessionLoop:
        return SessionLoop(log, fixture.sessions.of_set(name), features, lambda: fixture.now_ms, name=name)

    def say(stage: str) -> None:
        definition = Definition(
            digest="d", reads="", logged=set_text(wide), before=set_text(FEATURES), stage=stage
        )
        log.append(CONTROL, [Append(0, b"", pack(definition))])

    fixture.append(*(engagement(i=i, event_id=f"e{i}") for i in range(500)), engagement("u2"))
    loops = SetLoops(log, FEATURES, make)
    while loops.turn():
        pass
    say(FOLDED)
    assert loops.turn() and loops.behind > 0
    while loops.turn():
        pass
    assert loops.behind == 0 and set(new.blobs) == {"u1", "u2"}
    assert Session.unpack(new.blobs["u1"], wide).events == 500
    partition = partition_of("u1", 4)
    assert set(log.holds(EVENTS, partition)) == {"session-fold", f"session-fold@{wide.digest}"}
    fixture.erase("u1")
    while loops.turn():
        pass
    assert set(new.blobs) == set(fixture.sessions.blobs) == {"u2"}
    say(ALONE)
    loops.turn()
    assert not fixture.sessions.blobs and set(new.blobs) == {"u2"}
    assert set(log.holds(EVENTS, partition)) == {f"session-fold@{wide.digest}"}


@pytest.mark.parametrize("known", [True, False])
def test_an_erasure_read_after_its_tombstone_keeps_what_came_since(fixture: Fixture, known: bool) -> None:
    """``known``: the fold has the session in memory; else it was started again."""
    fixture.append(engagement("u2"), engagement(), engagement(i=1))
    offset = fixture.log.end(EVENTS, partition_of("u1", 4))
    fixture.append(User(time_ms=NOW_MS, user_id="u1", removed=True), engagement(i=2))
    loop = fixture.loop()
    turn_all(loop)
    said = Erasure(user_id="u1", offset=offset)
    done = Erasure(user_id="", offset=offset)
    fixture.log.append(CONTROL, [Append(0, b"", pack(its)) for its in (said, done)])
    turn_all(loop if known else fixture.loop())
    session = fixture.session("u1")
    assert session is not None and session.events == 1 and fixture.session("u2") is not None


def test_what_a_viewer_said_outlives_the_session_until_it_is_erased(fixture: Fixture) -> None:
    fields = {"country": "NZ", "profiling": False}
    block = Preference(time_ms=NOW_MS, user_id="u1", field="author", value="a1", wish="block")
    fixture.append(
        User(time_ms=NOW_MS, user_id="u1", fields=fields), block, engagement(kind="hide"), engagement("u2")
    )
    turn_all(fixture.loop())
    before = fixture.session("u1")
    assert before is not None
    fixture.sessions.blobs.clear()  # expired
    fixture.append(engagement(i=2), engagement("u2", 2))
    turn_all(fixture.loop())
    first, second = fixture.session("u1"), fixture.session("u2")
    assert first is not None and second is not None
    assert first.plain and first.profile == before.profile and first.wishes == before.wishes
    assert first.hidden == before.hidden and len(first.hidden) == 1
    assert len(first.seen) == 1 and first.offset > before.offset
    assert second.events == 1 and len(second.seen) == 1

    fixture.sessions.blobs.clear()
    fixture.erase("u1")
    turn_all(fixture.loop())
    assert fixture.sessions.load(["u1", "u2"]) == [None, None]


def test_tombstone_and_return_in_one_batch(fixture: Fixture) -> None:
    removed = User(time_ms=NOW_MS, user_id="u1", removed=True)
    fixture.append(engagement(), engagement(i=1), removed, engagement(i=2))
    turn_all(fixture.loop())
    session = fixture.session("u1")
    assert session is not None and session.events == 1


def test_sessions_of_another_log_are_refused(fixture: Fixture) -> None:
    fixture.append(engagement())
    turn_all(fixture.loop())
    other = Fixture()
    other.sessions = fixture.sessions
    with pytest.raises(LogLost, match="another|belongs"):
        other.loop().turn()


def test_a_session_ahead_of_the_place_is_not_folded_twice(fixture: Fixture) -> None:
    fixture.append(engagement(event_id="a"), engagement(i=1, event_id="b"))
    turn_all(fixture.loop())
    folded = dict(fixture.sessions.blobs)
    fixture.sessions._position = FoldPosition(fixture.log.id, [0, 0, 0, 0], 0)
    turn_all(fixture.loop())
    assert fixture.sessions.blobs == folded


def test_the_log_is_held_where_the_fold_would_begin_again(fixture: Fixture) -> None:
    fixture.append(engagement())
    loop = fixture.loop()
    turn_all(loop)
    fixture.now_ms += 6_000
    loop.turn()
    partition = partition_of("u1", 4)
    assert fixture.log.holds(EVENTS, partition) == {"session-fold": 1}
    fixture.now_ms -= 3_600_000  # the clock was set back
    fixture.append(engagement(i=1))
    loop.turn()
    assert fixture.log.holds(EVENTS, partition) == {"session-fold": 2}


class Failing(MemorySessions):
    """Fails at chosen commits: before writing, after it, or having lost what was written before."""

    def __init__(self, sessions: MemorySessions, plan: dict[int, str]) -> None:
        super().__init__()
        self.position, self.load = sessions.position, sessions.load  # type: ignore[method-assign]
        self.sessions, self.plan, self.calls = sessions, plan, 0
        self.old: list[tuple[dict[str, bytes], FoldPosition | None]] = []
        self.commit = self._commit  # type: ignore[method-assign]

    def _commit(
        self,
        before: FoldPosition | None,
        after: FoldPosition,
        sessions: Mapping[str, bytes],
        gone: Collection[str] = (),
        lasting: Mapping[str, bytes] = {},
    ) -> None:
        self.calls += 1
        what = self.plan.get(self.calls)
        if what == "before":
            raise StoreUnavailable("before")
        if what == "lost" and self.old:
            blobs, place = self.old[len(self.old) // 2]
            self.sessions.blobs, self.sessions._position = dict(blobs), place
        self.sessions.commit(before, after, sessions, gone, lasting)
        self.old.append((dict(self.sessions.blobs), self.sessions._position))
        if what == "after":
            raise StoreUnavailable("after")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30),
    st.dictionaries(st.integers(1, 12), st.sampled_from(["before", "after", "lost"]), max_size=6),
    st.integers(1, 4),
    st.integers(0, 1),
)
def test_whatever_fails_the_sessions_are_those_of_an_undisturbed_fold(
    what: list[tuple[int, int]], plan: dict[int, str], limit: int, restart: int
) -> None:
    disturbed, calm = Fixture(), Fixture()
    for number, (user, i) in enumerate(what):
        for fixture in (disturbed, calm):
            fixture.append(engagement(f"u{user}", i, event_id=f"e{number}"))
    turn_all(calm.loop())
    store = Failing(disturbed.sessions, plan)
    loop, idle = disturbed.loop(store), 0
    while idle < 2:
        try:
            idle = 0 if loop.turn(limit) else idle + 1
        except (StoreUnavailable, PositionConflict):
            if restart:
                loop = disturbed.loop(store)
    assert disturbed.sessions.blobs == calm.sessions.blobs


class PartStore(MemorySessions):
    """A store that is away for the first write."""

    def __init__(self) -> None:
        super().__init__()
        self.away, self.scrubs, self.closed = True, 0, False

    def commit(self, *parts: Any) -> None:
        if self.away:
            self.away = False
            raise StoreUnavailable("away")
        super().commit(*parts)

    def scrub(self) -> bool:
        self.scrubs += 1
        return self.scrubs != 2  # the server is busy once

    def close(self) -> None:  # type: ignore[override]  # the adapter of Valkey closes at once
        self.closed = True


def test_the_part_tries_again_and_scrubs_the_store_after_an_erasure_until_it_did(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture.append(engagement("u1"), engagement("u2"))
    store, stop, turns = PartStore(), Stop(), []

    def wait(topic: str, timeout_s: float) -> bool:
        turns.append(topic)
        if len(turns) == 1:
            assert store.scrubs == 1  # sessions may have gone before it started
            fixture.erase("u1")
        elif len(turns) == 5:
            stop.set()
        return False

    pauses: list[float] = []
    monkeypatch.setattr(stop, "wait", lambda timeout_s, starting: pauses.append(timeout_s))
    monkeypatch.setattr(fixture.log, "wait", wait)
    monkeypatch.setattr(session_loop, "_SCRUB_EVERY_S", 0.0)
    monkeypatch.setattr(session_loop, "open_log", lambda config: fixture.log)
    monkeypatch.setattr(session_loop, "fold_store", lambda *settings: store)
    session_loop.run(Config(), stop)
    assert set(store.blobs) == {"u2"} and store.closed
    assert store.scrubs == 3 and pauses == [0.3]  # the second attempt was refused
    counters = stop.heartbeat.now().counters
    assert (counters["retries"], counters["events"]) == (1, 3)
