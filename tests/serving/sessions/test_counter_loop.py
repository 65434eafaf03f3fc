"""Item counters through the log: told absolutely, told again, the same after a crash."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from recsys.config.system_config import Config, CovisitConfig
from recsys.events.event_types import (
    Engagement,
    Event,
    FeatureBlock,
    Impression,
    Item,
    ServedItem,
    User,
    Verdict,
    Withdrawal,
    decode,
    encode,
)
from recsys.events.hashing import cross, key_of, partition_of
from recsys.events.records import EVENTS, ITEM_STATE, ITEMS, ItemState, topics, unpack
from recsys.features.counters import CounterTable
from recsys.features.covisits import Covisits
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FEED_SCHEMA
from recsys.log.protocol import Append, Log, LogLost, MemoryLog
from recsys.log.sqlite_log import SqliteLog
from recsys.process.part_snapshot import PartState, quarantined_users
from serving.replica.replica import Replica
from serving.sessions import item_states
from serving.sessions.counter_loop import NAME, CounterLoop

FEATURES = FeatureSet(FEED_SCHEMA)
NOW_MS = 1_790_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> MemoryLog:
    made = MemoryLog()
    for topic in topics(4):
        made.create(topic)
    for i in range(5):
        fields = {"author": f"a{i % 2}", "tags": [f"t{i % 3}"], "duration_ms": 9_000}
        made.append(ITEMS, [Append(0, b"", encode(Item(time_ms=1, item_id=f"v{i}", fields=fields)))])
    return made


def append(log: Log, *events: Event) -> None:
    for event in events:
        assert isinstance(event, Impression | Engagement)
        log.append(EVENTS, [Append(partition_of(event.user_id, 4), b"", encode(event))])


def watched(number: int, item: int = 0, kind: str = "view") -> tuple[Impression, Engagement]:
    request, user, time_ms = f"r{number}", f"u{number % 7}", NOW_MS + 10 * number
    served = [ServedItem(item_id=f"v{item}")]
    return (
        Impression(time_ms=time_ms, request_id=request, user_id=user, items=served),
        Engagement(
            time_ms=time_ms + 1, request_id=request, user_id=user, item_id=f"v{item}", kind=kind,
            watch_ms=3_000,
        ),
    )  # fmt: skip


def told(log: Log, name: str = "") -> CounterTable:
    """Counters of a replica that starts now."""
    counters = CounterTable(len(FEATURES.kinds))
    for record in log.read(ITEM_STATE, 0, log.begin(ITEM_STATE, 0), 100_000):
        state = unpack(record.value, ItemState)
        if state.features != name:
            continue
        keys = np.frombuffer(state.keys, np.int64)
        values = np.frombuffer(state.values, np.float32).reshape(len(keys), -1)
        counters.set(keys, values, np.frombuffer(state.last_ms, np.int64))
    return counters


def content(counters: CounterTable) -> dict[int, tuple[list[float], int]]:
    keys, values, last_ms = counters.export()
    return {int(k): (v.tolist(), int(t)) for k, v, t in zip(keys, values, last_ms, strict=True)}


def same(one: CounterTable, other: CounterTable) -> None:
    """Equal but for the last bits, since partitions are read in another order after a restart."""
    keys, _values, last_ms = one.export()
    assert set(keys.tolist()) == set(other.export()[0].tolist())
    now_ms = int(last_ms.max())
    np.testing.assert_allclose(one.read(keys, now_ms), other.read(keys, now_ms), rtol=1e-5)


def turn_all(loop: CounterLoop) -> None:
    while loop.turn():
        pass


def test_published_counters_equal_the_counted_ones(log: MemoryLog, clock: Clock) -> None:
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    for number in range(20):
        append(log, *watched(number, number % 3))
        clock.now_ms += 60
        loop.turn()
    loop.publish()
    assert content(told(log)) == content(loop.fold.counters)
    shown = told(log).read(np.array([key_of("item", "v0")]), NOW_MS + 200)[0, 0]
    assert shown == pytest.approx(7, abs=0.01)
    newest = unpack(log.read(ITEM_STATE, 0, 0, 10_000)[-1].value, ItemState)
    assert newest.offsets == [log.end(EVENTS, p) for p in range(4)]


def test_counters_are_published_and_saved_though_the_clock_was_set_back(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    loop = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), now_ms=clock)
    append(log, *watched(0))
    loop.turn()
    clock.now_ms -= 3_600_000
    append(log, *watched(1))
    loop.turn()
    assert content(told(log)) == content(loop.fold.counters)
    saved = PartState(tmp_path, NAME).load(log.id)
    assert saved is not None and saved.offsets[EVENTS] == dict(enumerate(loop.offsets))


def test_changed_counters_are_published_ten_times_a_second(log: MemoryLog, clock: Clock) -> None:
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    loop.turn()
    for number in range(10):
        append(log, *watched(number, 1))
        clock.now_ms += 30
        loop.turn()
    records = log.read(ITEM_STATE, 0, 0)
    assert len(records) == 2  # in 300 ms, 30 ms apart
    loop.publish()
    append(log, *watched(11, 2))
    clock.now_ms += 100
    loop.turn()
    keys = np.frombuffer(unpack(log.read(ITEM_STATE, 0, 0)[-1].value, ItemState).keys, np.int64)
    assert key_of("item", "v2") in keys and key_of("item", "v1") not in keys
    clock.now_ms += 100
    loop.turn()
    assert (
        len(log.read(ITEM_STATE, 0, 0)) == 4
    )  # 2, the one that was asked for, this one: nothing new, nothing told


@pytest.mark.parametrize("before", [0, 1])
def test_how_far_it_has_counted_is_published_though_no_counter_changes(
    log: MemoryLog, clock: Clock, before: int
) -> None:
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    for number in range(before):
        append(log, *watched(number))
    turn_all(loop)
    loop.publish()
    log.append(EVENTS, [Append(0, b"", b"\xc1rubbish")] * 3)
    turn_all(loop)
    loop.publish()
    assert read_states(log).counted == [log.end(EVENTS, p) for p in range(4)]


def test_a_repeated_event_counts_once(log: MemoryLog, clock: Clock) -> None:
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    append(log, *watched(1), *watched(1))
    turn_all(loop)
    assert loop.fold.counters.read(np.array([key_of("item", "v0")]), NOW_MS + 11)[0, 0] == 1.0


def test_a_crash_anywhere_changes_nothing(log: MemoryLog, clock: Clock, tmp_path: Path) -> None:
    calm = CounterLoop(log, FEATURES, now_ms=clock)
    loop = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock)
    for number in range(60):
        append(log, *watched(number, number % 5, "like" if number % 4 else "view"))
        clock.now_ms += 700
        loop.turn()
        if number % 9 == 8:  # killed: what was counted since the newest snapshot is counted again
            loop = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock)
    turn_all(loop)
    turn_all(calm)
    same(loop.fold.counters, calm.fold.counters)
    loop.publish()
    same(told(log), calm.fold.counters)
    assert log.holds(EVENTS, 0).keys() == {"counters"}


def test_the_context_and_the_segment_of_a_request_outlive_a_restart(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    calm = CounterLoop(log, FEATURES, now_ms=clock)
    loop = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock)
    impression, engagement = watched(1)
    user_U = np.zeros(FEATURES.user_columns, np.int64)
    user_U[FEATURES.slot("profile").start] = 77
    features = FeatureBlock(feature_set="f", user_keys=user_U.tobytes())
    append(log, msgspec.structs.replace(impression, features=features))
    loop.turn()
    loop.save()
    loop = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock)
    append(log, engagement)
    turn_all(loop)
    turn_all(calm)
    same(loop.fold.counters, calm.fold.counters)
    crossed = cross(77, np.array([key_of("item", engagement.item_id)]))
    assert loop.fold.counters.read(crossed, engagement.time_ms).any()


def test_all_are_published_again_and_old_records_trimmed(
    log: MemoryLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_states, "_REPUBLISH_AFTER", 10)
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    for number in range(80):
        append(log, *watched(number, number % 5 if number < 5 else 0))
        clock.now_ms += 100
        loop.turn()
    assert 0 < log.begin(ITEM_STATE, 0)
    assert log.end(ITEM_STATE, 0) - log.begin(ITEM_STATE, 0) <= 30
    assert content(told(log)) == content(loop.fold.counters)  # also what changed long ago


def test_what_one_feature_set_trims_leaves_the_others_their_counters(
    log: MemoryLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_states, "_REPUBLISH_AFTER", 10)
    first, other = (CounterLoop(log, FEATURES, now_ms=clock, name=name) for name in ("", "other"))
    for number in range(80):
        append(log, *watched(number, number % 5 if number < 5 else 0))
        clock.now_ms += 100
        other.turn()
        if number == 5:
            first.turn()
    assert log.begin(ITEM_STATE, 0) > 0
    assert content(told(log)) == content(first.fold.counters)
    first.end()
    other.turn()
    clock.now_ms += 100
    other.publish()
    assert content(told(log, "other")) == content(other.fold.counters)


def test_retention_leaves_what_a_new_reader_needs(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After quiet days, and where a full publication takes more than the topic's share of the disk."""
    monkeypatch.setattr(item_states, "_KEYS", 1)
    log = SqliteLog(tmp_path / "log", clock=clock)
    for topic in topics(4, retention_hours=1, retention_bytes={ITEM_STATE: 500}):
        log.create(topic)
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    for number in range(20):
        append(log, *watched(number, number % 5))
    turn_all(loop)
    for number in (90, 91):
        clock.now_ms += 7_200_000
        append(log, *watched(number))
        turn_all(loop)
        assert content(told(log)) == content(loop.fold.counters)
    loop.end()
    clock.now_ms += 7_200_000
    log.append(ITEM_STATE, [Append(0, b"", b"")])
    assert log.begin(ITEM_STATE, 0) == log.end(ITEM_STATE, 0) - 1
    log.close()


def test_where_no_hold_stops_retention_all_are_published_again(
    log: MemoryLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "hold", lambda *_: None)  # as Kafka
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    append(log, *watched(0))
    turn_all(loop)
    log.trim(ITEM_STATE, 0, log.end(ITEM_STATE, 0))
    clock.now_ms += 100
    append(log, *watched(1, 1))
    turn_all(loop)
    assert content(told(log)) == content(loop.fold.counters)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_snapshot_is_skipped_with_a_warning(
    log: MemoryLog, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: int
) -> None:
    calm, state = CounterLoop(log, FEATURES, now_ms=clock), PartState(tmp_path, NAME)
    loop = CounterLoop(log, FEATURES, state, clock)
    for number in range(30):
        append(log, *watched(number, number % 5))
        if number % 10 == 5:
            turn_all(loop)
            loop.save()
    for name in ("state.msgpack", "state.previous.msgpack")[:damaged]:
        raw = bytearray((state.folder / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (state.folder / name).write_bytes(raw)
    held = [log.holds(EVENTS, p)[NAME] for p in range(4)]
    again = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock)
    said = "went on from the snapshot before it" if damaged == 1 else "counting from the log"
    assert said in caplog.text and "SHA-256" in caplog.text
    assert again.events.offsets == (held if damaged == 1 else [0] * 4)
    turn_all(again)
    turn_all(calm)
    same(again.fold.counters, calm.fold.counters)
    again.save()  # and from here on all is well
    caplog.clear()
    CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock)
    assert caplog.text == ""


def test_the_snapshot_of_another_log_is_refused(log: MemoryLog, clock: Clock, tmp_path: Path) -> None:
    CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock).save()
    other = MemoryLog()
    for topic in topics(4):
        other.create(topic)
    with pytest.raises(LogLost, match="state.msgpack"):
        CounterLoop(other, FEATURES, PartState(tmp_path, NAME), clock)


def read_states(log: MemoryLog, start: int = 0, replica: Replica | None = None) -> Replica:
    replica = replica or Replica(FEATURES, Config())
    for record in log.read(ITEM_STATE, 0, max(start, log.begin(ITEM_STATE, 0)), 100_000):
        replica.apply_item_state(unpack(record.value, ItemState), record.offset + 1)
    return replica


def test_replicas_drop_the_counters_that_the_fold_drops(
    log: MemoryLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_states, "_REPUBLISH_AFTER", 25)
    monkeypatch.setattr(item_states, "_KEYS", 7)
    monkeypatch.setattr(item_states, "_COUNTERS", 30)
    loop, replica = CounterLoop(log, FEATURES, now_ms=clock), Replica(FEATURES, Config())
    for record in log.read(ITEMS, 0, 0):
        event = decode(record.value)
        assert isinstance(event, Item)
        replica.apply_item(event, record.offset + 1)
    append(log, *watched(0, 4, "long_view"))
    for number in range(1, 200):
        shown, view = watched(number, number % 3)
        append(log, msgspec.structs.replace(shown, surface=f"s{number}"), view)
        clock.now_ms += 100
        loop.turn()
        read_states(log, replica.item_state_offset, replica)
    dropped = replica.catalogue.index_of("v4")
    assert dropped is not None and replica.popularity.values[dropped] == -np.inf
    assert loop.rows_evicted > 100 and content(replica.counters) == content(loop.fold.counters)


def near_all(covisits: Covisits, items: range) -> list[tuple[int, float]]:
    history = np.array([key_of("item", f"v{n}") for n in items], np.int64)
    keys, scores = covisits.near(history, np.ones(len(history)), NOW_MS + 100_000)
    return sorted(zip(keys.tolist(), scores.tolist(), strict=True))


def test_readers_from_any_full_copy_on_have_the_covisits_of_the_fold(
    log: MemoryLog, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_states, "_REPUBLISH_AFTER", 25)
    monkeypatch.setattr(item_states, "_ROWS", 7)
    config = CovisitConfig(items=40)
    loop = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock, covisits=config)
    untrimmed, items = read_states(log), range(60)
    for number in range(300):
        append(log, *watched(number, number * 7 % 61, "long_view"))
        clock.now_ms += 700
        loop.turn()
        if number % 40 == 39:  # killed: readers have visits that the snapshot lacks
            loop = CounterLoop(log, FEATURES, PartState(tmp_path, NAME), clock, covisits=config)
        for record in log.read(ITEM_STATE, 0, untrimmed.item_state_offset, 1_000):
            untrimmed.apply_item_state(unpack(record.value, ItemState), record.offset + 1)
    loop.publish()
    late = read_states(log, untrimmed.item_state_offset - 1)
    for record in log.read(ITEM_STATE, 0, untrimmed.item_state_offset, 1_000):
        untrimmed.apply_item_state(unpack(record.value, ItemState), record.offset + 1)
    expected = near_all(loop.states.covisits, items)
    assert log.begin(ITEM_STATE, 0) > 0 and loop.states.evicted and len(expected) > 20
    assert near_all(untrimmed.covisits, items) == near_all(read_states(log).covisits, items)
    assert near_all(untrimmed.covisits, items) == expected != near_all(late.covisits, items)


def test_a_forgotten_and_a_quarantined_viewer_leave_no_newest_items(log: MemoryLog, clock: Clock) -> None:
    loop = CounterLoop(log, FEATURES, now_ms=clock)
    for item in range(3):
        likes = [pushed(3 * item, user, "long_view", 1) for user in ("farm", "gone", "fan")]
        keyed(log, *(msgspec.structs.replace(like, item_id=f"v{item}") for like in likes))
    turn_all(loop)
    assert len(loop.fold.visits.users) == 3
    keyed(log, Verdict(time_ms=NOW_MS + 900, user_id="farm", quarantined=True))
    keyed(log, User(time_ms=NOW_MS + 900, user_id="gone", removed=True))
    turn_all(loop)
    loop.publish()
    assert list(loop.fold.visits.users) == [key_of("user", "fan")]
    key = np.array([key_of("item", "v0")])
    pairs = loop.states.covisits.export()
    weights = np.frombuffer(pairs.weights, np.float32)
    assert weights.max() == pytest.approx(2, abs=1e-3) and len(
        loop.states.covisits.near(key, np.ones(1), NOW_MS)[0]
    )


def keyed(log: MemoryLog, *events: Event) -> None:
    """Appends events with their users as keys, as the doors do."""
    for event in events:
        user = str(event.user_id)  # type: ignore[union-attr]
        log.append(EVENTS, [Append(partition_of(user, 4), user.encode(), encode(event))])


def pushed(number: int, user: str, kind: str, source: int) -> Engagement:
    _, event = watched(number, 0, kind)
    return msgspec.structs.replace(event, user_id=user, source=source)


def test_withdrawals_take_back_what_each_names_of_what_came_before_it(log: MemoryLog, clock: Clock) -> None:
    loop = CounterLoop(log, FEATURES, None, clock)
    users = ("farm", "fan", "guest")
    likes = [pushed(n, user, "like", n) for n, user in enumerate(users)]
    keyed(log, *likes)
    named = {"farm": {}, "fan": {likes[1].request_id: ["v0"]}, "guest": {"another": []}}
    keyed(
        log,
        *(
            Withdrawal(time_ms=NOW_MS + 1_000, user_id=user, from_ms=1, requests=named[user])
            for user in users
        ),
        msgspec.structs.replace(pushed(9, "farm", "like", 9), item_id="v1"),  # after it
    )
    turn_all(loop)
    column = FEATURES.kinds.index("like")
    rows = np.array([key_of("item", "v0"), key_of("item", "v1")])
    counts = loop.fold.counters.read(rows, NOW_MS + 200).reshape(2, 2, -1)[:, 0, column]
    np.testing.assert_allclose(counts, [1, 1], atol=1e-3)


def test_a_verdict_takes_back_a_users_counts_and_survives_a_restart(
    log: MemoryLog, clock: Clock, tmp_path: Path
) -> None:
    state = PartState(str(tmp_path), NAME)
    loop = CounterLoop(log, FEATURES, state, clock)
    keyed(log, *(pushed(n, "farm", "like", 1) for n in range(5)), pushed(9, "fan", "like", 2))
    turn_all(loop)
    row, likes = np.array([key_of("item", "v0")]), FEATURES.kinds.index("like")
    assert loop.fold.counters.read(row, NOW_MS)[0, likes] == pytest.approx(2, abs=1e-4)
    keyed(log, Verdict(time_ms=NOW_MS + 1_000, user_id="farm", quarantined=True))
    turn_all(loop)
    assert loop.fold.counters.read(row, NOW_MS + 60)[0, likes] == pytest.approx(1, abs=1e-4)
    loop.save()
    assert quarantined_users(str(tmp_path), log.id) == {"farm"}

    again = CounterLoop(log, FEATURES, PartState(str(tmp_path), NAME), clock)
    keyed(log, pushed(20, "farm", "like", 1), pushed(21, "fan", "like", 2))
    keyed(log, msgspec.structs.replace(pushed(22, "farm", "like", 1), item_id="v2"))
    turn_all(again)  # the fan's second like of the item is a repeat
    assert again.fold.counters.read(row, NOW_MS + 60)[0, likes] == pytest.approx(1, abs=1e-4)
    held = np.array([key_of("item", "v2")])
    assert again.fold.counters.read(held, NOW_MS + 220)[0, likes] == 0
    keyed(log, Verdict(time_ms=NOW_MS + 2_000, user_id="farm", quarantined=False))
    keyed(log, *(msgspec.structs.replace(pushed(22, "farm", "like", 1), item_id="v1"),))
    turn_all(again)
    other = np.array([key_of("item", "v1")])
    assert again.fold.counters.read(other, NOW_MS + 220)[0, likes] == pytest.approx(1, abs=1e-4)


def test_a_snapshot_of_another_version_is_left_out_and_the_log_is_counted(
    log: MemoryLog, clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = CounterLoop(log, FEATURES, PartState(str(tmp_path), NAME), clock)
    append(log, *watched(1))
    turn_all(loop)
    loop.save()
    saved = PartState(str(tmp_path), NAME).load(log.id)
    assert saved is not None
    fields = msgspec.msgpack.decode(saved.blob)
    del fields["quarantined"], fields["influences"]
    state = PartState(str(tmp_path / "old"), NAME)
    state.save(log.id, saved.offsets, msgspec.msgpack.encode(fields))
    again = CounterLoop(log, FEATURES, state, clock)
    assert "missing required field `quarantined`" in caplog.text
    turn_all(again)
    assert content(again.fold.counters) == content(loop.fold.counters)
