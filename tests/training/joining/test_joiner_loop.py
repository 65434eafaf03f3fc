"""The joiner as a loop over a log: crashes and failures are inputs, results are exact."""

import contextlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from recsys.clock import Clock as EventClock
from recsys.clock import Pace
from recsys.events.event_types import Engagement, Event, Impression, Tick, User, decode, encode
from recsys.events.hashing import partition_of
from recsys.events.records import DEAD_LETTERS, EVENTS, EXAMPLES, DeadLetter, Example, topics
from recsys.log.compression import plain
from recsys.log.protocol import Append, LogLost, LogUnavailable, MemoryLog, Record
from recsys.process.part_snapshot import PartState
from tests.support.training.learning_loops import Clock, FlakyLog, drain, everything, join
from tests.support.training.small_feed import (
    FEATURES,
    PARTITIONS,
    START_MS,
    append_events,
    append_examples,
    example,
    feed,
    toy_config,
    toy_log,
)
from training.deletion.erasure import erase_records
from training.joining.joiner_loop import JoinerLoop, sequences_after
from training.steps.ticker import Ticker

# --- the joiner ---


ALL_SHOWN = replace(FEATURES, schema=replace(FEATURES.schema, shown_by="impression"))


def shown_feed(requests: int) -> list[Event]:
    """A feed whose lists are all shown."""
    events = feed(requests)
    for event in events:
        if isinstance(event, Impression):
            event.shown = True
    return events


def expected_examples(requests: int) -> list[list[Example]]:
    log = toy_log()
    append_events(log, feed(requests))
    drain(join(log))
    return everything(log, EXAMPLES, Example)


def test_examples_lie_in_the_partition_of_their_events() -> None:
    found = expected_examples(40)
    assert sum(map(len, found)) > 40
    for partition, examples in enumerate(found):
        assert {e.partition for e in examples} <= {partition}
        assert [e.sequence for e in examples] == list(range(1, len(examples) + 1))


@pytest.mark.parametrize("save", [True, False])
def test_a_joiner_killed_anywhere_neither_loses_nor_repeats(tmp_path: Path, save: bool) -> None:
    log, events = toy_log(), feed(60)
    for start in range(0, len(events), 7):
        append_events(log, events[start : start + 7])
        loop = join(log, PartState(tmp_path, "joiner"))  # as after kill -9: nothing but the snapshot
        loop.turn()
        if save and start % 3 == 0:
            loop.save()
    drain(join(log, PartState(tmp_path, "joiner")))
    assert everything(log, EXAMPLES, Example) == expected_examples(60)


@pytest.mark.parametrize("killed", [True, False])
def test_output_of_other_settings_is_not_taken_for_its_own(tmp_path: Path, killed: bool) -> None:
    log, clock = toy_log(), Clock()
    config, state = toy_config(), PartState(tmp_path, "joiner")
    events = feed(60)
    append_events(log, events[: len(events) // 2])
    loop = JoinerLoop(log, config, FEATURES, clock, state)
    drain(loop)
    loop.save()
    append_events(log, events[len(events) // 2 :])
    drain(loop)
    if not killed:
        loop.save()
    loop.close()
    for changed in (
        replace(config, join=replace(config.join, negatives=0.5)),
        replace(config, bounds=replace(config.bounds, burst=7)),
    ):
        if killed:
            with pytest.raises(ValueError, match=r"joined with other settings: .* was 1.*, is .*recsys down"):
                JoinerLoop(log, changed, FEATURES, clock, state)
        else:
            JoinerLoop(log, changed, FEATURES, clock, state).close()
    other = replace(config.join, memory_mb=1.0)
    drain(JoinerLoop(log, replace(config, join=other), FEATURES, clock, state))
    assert everything(log, EXAMPLES, Example) == expected_examples(60)


def test_output_of_new_settings_is_its_own_also_if_it_is_killed_at_once(tmp_path: Path) -> None:
    log, clock, events = toy_log(), Clock(), feed(60)
    config, state = toy_config(), PartState(tmp_path, "joiner")
    append_events(log, events[: len(events) // 2])
    loop = JoinerLoop(log, config, FEATURES, clock, state)
    drain(loop)
    loop.save()
    loop.close()
    append_events(log, events[len(events) // 2 :])
    changed = replace(config, join=replace(config.join, negatives=0.5))
    drain(JoinerLoop(log, changed, FEATURES, clock, state))  # killed: its clock saved nothing
    ends = [log.end(EXAMPLES, p) for p in range(PARTITIONS)]
    drain(JoinerLoop(log, changed, FEATURES, clock, state))
    assert ends == [log.end(EXAMPLES, p) for p in range(PARTITIONS)]
    with pytest.raises(ValueError, match=r"join.negatives was 0.5, is 1"):
        JoinerLoop(log, config, FEATURES, clock, state)


@pytest.mark.parametrize("through", [0, 1, 3, 1000])
def test_an_append_that_fails_halfway_is_finished(through: int) -> None:
    log = FlakyLog()
    for topic, partitions in ((EVENTS, PARTITIONS), (EXAMPLES, PARTITIONS), (DEAD_LETTERS, 1)):
        from recsys.log.protocol import Topic

        log.create(Topic(topic, partitions))
    append_events(log, feed(60))
    log.fail[EXAMPLES] = [through]
    loop = join(log)
    with pytest.raises(LogUnavailable):
        drain(loop)
    drain(loop)
    assert everything(log, EXAMPLES, Example) == expected_examples(60)


def test_what_is_no_event_goes_to_dead_letters_once(tmp_path: Path) -> None:
    log = toy_log()
    log.append(EVENTS, [Append(1, b"", b"\xc1rubbish")])
    append_events(log, feed(5))
    for _ in range(3):
        loop = join(log, PartState(tmp_path, "joiner"))
        drain(loop)
    letters = everything(log, DEAD_LETTERS, DeadLetter)[0]
    assert [(x.topic, x.partition, x.offset, x.raw) for x in letters] == [(EVENTS, 1, 0, b"\xc1rubbish")]
    assert loop.counts()["unreadable"] == 1 and "MessagePack" in letters[0].reason


def test_it_saves_by_its_clock_and_holds_the_log_behind_it(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    append_events(log, feed(20))
    loop = join(log, PartState(tmp_path, "joiner"), clock)
    loop.turn()
    assert not list(tmp_path.rglob("*.msgpack"))
    clock.now_ms = 5_000
    loop.turn()
    assert log.holds(EVENTS, 0) == {"joiner": 0}  # from its first impression, which may be read again
    append_events(log, [Tick(time_ms=START_MS + 10_000_000)])
    for now_ms in (10_000, 15_000):  # what is needed of the snapshot before is kept
        clock.now_ms = now_ms
        loop.turn()
    assert log.holds(EVENTS, 0) == {"joiner": log.end(EVENTS, 0)}
    append_events(log, [Tick(time_ms=START_MS + 10_000_001)])
    clock.now_ms -= 3_600_000  # it was wrong, and is set back
    loop.turn()
    again = join(log, PartState(tmp_path, "joiner"))
    assert again.offsets == loop.offsets and again.counts()["examples"] > 0


def late_likes(log: MemoryLog) -> list[Append]:
    """A like of each viewed item of the log's events, after the windows and before the horizons."""
    likes = []
    for partition in range(PARTITIONS):
        for record in log.read(EVENTS, partition, log.begin(EVENTS, partition)):
            event = decode(record.value)
            if isinstance(event, Engagement) and event.kind == "view":
                like = msgspec.structs.replace(event, kind="like", time_ms=START_MS + 600_000, watch_ms=None)
                likes.append(Append(partition, record.key, encode(like)))
    return likes


def test_impressions_are_read_again_from_the_log_that_is_held_for_them(tmp_path: Path) -> None:
    log, clock = toy_log(), Clock()
    append_events(log, [*feed(20), Tick(time_ms=START_MS + 500_000)])
    loop = join(log, PartState(tmp_path, "joiner"), clock)
    loop.turn()
    loop.save()
    likes = late_likes(log)
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, log.end(EVENTS, partition))  # as far as it may
    log.append(EVENTS, likes)
    again = join(log, PartState(tmp_path, "joiner"))
    drain(again)
    counts = again.counts()
    assert counts["corrections"] > 10 and counts["lost"] == 0 == counts["unmatched"]
    corrected = [e for part in everything(log, EXAMPLES, Example) for e in part if e.correction]
    assert all(e.features is not None and e.previous != e.labels for e in corrected)


class JumpingLog(MemoryLog):
    """As Kafka: single reads take round trips, so it reads many. ``forgets``: finds none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.forgets = False
        for topic in topics(PARTITIONS):
            self.create(topic)

    def read_each(
        self, topic: str, offsets: Mapping[int, Collection[int]]
    ) -> dict[tuple[int, int], Record | None]:
        self.batches.append(sum(map(len, offsets.values())))
        places = [(p, o) for p in offsets for o in offsets[p]]
        return {(p, o): None if self.forgets else self.read(topic, p, o, 2)[0] for p, o in places}


@pytest.mark.parametrize("forgets", [False, True])
def test_impressions_of_late_engagements_are_read_together(
    monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    log = JumpingLog()
    append_events(log, [*feed(20), Tick(time_ms=START_MS + 500_000)])
    loop = join(log)
    loop.turn()
    assert sum(log.batches) == 0  # none was late
    log.append(EVENTS, late_likes(log))
    log.batches, log.forgets = [], forgets
    reads, read = [], log.read

    def counted(topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        reads.append(limit)
        return read(topic, partition, offset, limit)

    monkeypatch.setattr(log, "read", counted)
    loop.turn()
    counts = loop.counts()
    assert counts["corrections"] > 10 and counts["lost"] == 0
    assert log.batches[0] > 5 and sum(log.batches[1:]) == 0
    assert (reads.count(1) > 10) == forgets and bool(reads.count(1)) == forgets


def test_after_a_restart_impressions_of_ending_windows_are_read_together(tmp_path: Path) -> None:
    config, features = toy_config(), ALL_SHOWN

    def make(log: MemoryLog, folder: str) -> JoinerLoop:
        return JoinerLoop(log, config, features, Clock(), PartState(tmp_path / folder, "joiner"))

    log, plain = JumpingLog(), toy_log()
    events = [e for e in shown_feed(20) if not isinstance(e, Tick)]  # windows stay open
    append_events(log, events)
    loop = make(log, "jumping")
    loop.turn()
    loop.save()
    append_events(log, [Tick(time_ms=START_MS + 500_000)])
    log.batches = []
    again = make(log, "jumping")
    drain(again)
    assert again.counts()["lost"] == 0 and again.counts()["examples"] > 20
    batches = [batch for batch in log.batches if batch]
    assert 0 < len(batches) <= PARTITIONS and sum(batches) >= 10
    append_events(plain, [*events, Tick(time_ms=START_MS + 500_000)])
    drain(make(plain, "plain"))
    assert everything(log, EXAMPLES, Example) == everything(plain, EXAMPLES, Example)


def test_impressions_of_ending_windows_are_read_once_and_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.joining.joiner_loop._READ", 4)
    config, features, log = toy_config(), ALL_SHOWN, JumpingLog()
    append_events(log, [event for event in shown_feed(60) if not isinstance(event, Tick)])
    loop = JoinerLoop(log, config, features, Clock(), PartState(tmp_path, "joiner"))
    drain(loop)
    loop.save()
    again = JoinerLoop(log, config, features, Clock(), PartState(tmp_path, "joiner"))
    pending, log.batches = again.pending(), []
    for after_ms in range(0, 500_000, 1_000):  # each turn ends some windows
        append_events(log, [Tick(time_ms=START_MS + after_ms)])
        drain(again)
        assert len(again._left) <= 6 * PARTITIONS
    assert again.counts()["lost"] == 0 and again.counts()["examples"] > 60
    assert sum(log.batches) <= 1.5 * pending
    log.forgets = True  # gone, or the broker fails: asked for together, once
    forgetful = JoinerLoop(log, config, features, Clock(), PartState(tmp_path, "joiner"))
    log.batches = []
    drain(forgetful)
    assert sum(log.batches) <= 1.5 * pending


def test_a_log_that_lost_impressions_costs_their_corrections_alone(tmp_path: Path) -> None:
    log = toy_log()
    append_events(log, [*feed(20), Tick(time_ms=START_MS + 500_000)])
    loop = join(log, PartState(tmp_path, "joiner"))
    loop.turn()
    likes = late_likes(log)
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, log.end(EVENTS, partition) - 1)
    before = loop.counts()
    log.append(EVENTS, likes)
    drain(loop)
    counts = loop.counts()
    assert counts["lost"] > 10 and counts["corrections"] == before["corrections"]
    loop.save()  # holds what is left


def test_a_hold_that_retention_overtook_is_held_where_the_log_begins(tmp_path: Path) -> None:
    class Unheld(MemoryLog):
        """As Kafka: nothing can be held there, it only checks."""

        def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
            super().hold(name, topic, partition, offset)
            self.release(name, topic)

    log = Unheld()
    for topic in topics(PARTITIONS):
        log.create(topic)
    append_events(log, feed(20))
    loop = join(log, PartState(tmp_path, "joiner"))
    loop.turn()
    loop.save()
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, log.end(EVENTS, partition))
    loop.save()  # what this one holds, the log no longer has
    assert not loop.turn()


def test_a_log_that_is_away_while_it_goes_back_loses_nothing(tmp_path: Path) -> None:
    log = FlakyLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    append_events(log, feed(60))
    loop = join(log, PartState(tmp_path, "joiner"))
    log.fail[EXAMPLES] = [1]
    log.away = 2  # reads, after that
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            drain(loop)
        loop.save()  # as a part does that is stopped now: half a turn must not be saved
    drain(loop)
    assert everything(log, EXAMPLES, Example) == expected_examples(60)
    drain(join(log, PartState(tmp_path, "joiner")))
    assert everything(log, EXAMPLES, Example) == expected_examples(60)


def test_a_snapshot_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    log = toy_log()
    loop, state = join(log, PartState(tmp_path, "joiner")), PartState(tmp_path, "joiner")
    loop.save()
    saved = state.load(log.id)
    assert saved is not None
    packed = msgspec.msgpack.decode(saved.blob)
    packed["joiners"] = dict.fromkeys(packed["joiners"], msgspec.msgpack.encode({"open": {}}))
    state.save(log.id, saved.offsets, msgspec.msgpack.encode(packed))
    with pytest.raises(ValueError, match="remove that folder"):
        join(log, PartState(tmp_path, "joiner"))


def test_the_snapshot_of_another_log_is_refused(tmp_path: Path) -> None:
    join(toy_log(), PartState(tmp_path, "joiner")).save()
    with pytest.raises(LogLost, match="remove .*joiner"):
        join(toy_log(), PartState(tmp_path, "joiner"))


def test_without_snapshot_and_beginning_it_goes_on_from_the_end() -> None:
    log = toy_log()
    append_events(log, feed(30))
    drain(join(log))
    before = everything(log, EXAMPLES, Example)
    for partition in range(PARTITIONS):
        log.trim(EVENTS, partition, 5)
    loop = join(log)
    assert loop.skipped == sum(log.end(EVENTS, p) - 5 for p in range(PARTITIONS))
    append_events(log, feed(30, first=1000))
    drain(loop)
    for old, now in zip(before, everything(log, EXAMPLES, Example), strict=True):
        assert now[: len(old)] == old and len(now) > len(old)
        assert [e.sequence for e in now] == list(range(1, len(now) + 1))


@pytest.mark.parametrize("passed", [True, False])
def test_joining_anew_after_an_erasure_loses_no_example_of_others(tmp_path: Path, passed: bool) -> None:
    """``passed``: the erasure is done; else its first pass alone, which took events and no examples."""
    log, state = toy_log(), PartState(tmp_path, "joiner")
    append_events(log, feed(30))
    user, partition = "u3", partition_of("u3", PARTITIONS)
    gone = User(time_ms=START_MS + 1_000_000, user_id=user, removed=True)
    (offset,) = log.append(EVENTS, [Append(partition, user.encode(), encode(gone))])
    loop = join(log, state)
    drain(loop)
    loop.save()
    for topic in (EVENTS, EXAMPLES) if passed else (EVENTS,):
        assert erase_records(log, topic, partition, {user.encode(): offset}, 1 << 60)
    shutil.rmtree(state.folder)
    loop = join(log, PartState(tmp_path, "joiner"))
    end = log.end(EXAMPLES, partition)
    more = feed(30, first=100_000)
    append_events(log, more)
    drain(loop)
    found = [
        msgspec.msgpack.decode(plain(r.value))["sequence"] for r in log.read(EXAMPLES, partition, 0, 10_000)
    ]
    assert found == list(range(1, len(found) + 1))
    calm = toy_log()
    append_events(calm, more)
    drain(join(calm))
    assert log.end(EXAMPLES, partition) - end == calm.end(EXAMPLES, partition) > 0


def test_a_request_to_be_forgotten_alone_is_joined_again_from_the_beginning() -> None:
    log = toy_log()
    append_events(log, feed(30))
    gone = User(time_ms=START_MS + 1_000_000, user_id="u3", removed=True)
    log.append(EVENTS, [Append(partition_of("u3", PARTITIONS), b"u3", encode(gone))])
    drain(join(log))
    assert join(log).skipped == 0


def test_sequences_are_read_backwards_only_as_far_as_needed() -> None:
    log = toy_log()
    append_examples(log, [example(3 * n, sequence=n + 1) for n in range(2500)])
    assert sequences_after(log, 0, 2490) == set(range(2491, 2501))
    assert sequences_after(log, 0, 0) == set(range(1, 2501))
    assert sequences_after(log, 1, 0) == set()


def test_where_the_schema_says_that_all_was_shown_there_are_negatives() -> None:
    log = toy_log()
    append_events(log, shown_feed(10))
    loop = JoinerLoop(log, toy_config(), ALL_SHOWN, Clock())
    drain(loop)
    assert loop.counts()["never_shown"] == 0 and loop.counts()["examples"] == 30


# --- ticks ---


def test_a_partition_that_never_had_an_event_is_not_ticked() -> None:
    log, clock = toy_log(), Clock()
    ticker = Ticker(log, clock)
    log.append(EVENTS, [Append(1, b"", encode(Tick(time_ms=0)))])
    for now_ms in range(0, 5_001, 50):
        clock.now_ms = now_ms
        ticker.turn()
    assert [log.end(EVENTS, p) > 0 for p in range(PARTITIONS)] == [p == 1 for p in range(PARTITIONS)]


def test_idle_partitions_are_ticked_once_a_second() -> None:
    log, clock = toy_log(), Clock()
    log.append(EVENTS, [Append(p, b"", encode(Tick(time_ms=0))) for p in range(PARTITIONS)])
    ticker = Ticker(log, clock)
    ticks = 0
    for now_ms in range(0, 10_001, 50):
        clock.now_ms = now_ms
        ticks += ticker.turn()
    assert 9 * PARTITIONS <= ticks <= 10 * PARTITIONS
    times = [decode(r.value).time_ms for r in log.read(EVENTS, 0, 0)]
    assert times == sorted(times) and isinstance(decode(log.read(EVENTS, 0, 0)[0].value), Tick)


def test_a_tick_goes_on_from_the_newest_event_and_is_never_later_than_now() -> None:
    log, clock = toy_log(), Clock()
    ticker = Ticker(log, clock)
    starts_ms = [1_000, 500_000, 5_000_000]  # the past; now; a client whose clock is fast
    records = [Append(p, b"", encode(Tick(time_ms=t))) for p, t in enumerate(starts_ms[:PARTITIONS])]
    log.append(EVENTS, records)
    for now_ms in range(500_000, 510_001, 50):
        clock.now_ms = now_ms
        ticker.turn()
    newest = [decode(log.read(EVENTS, p, 0)[-1].value).time_ms for p in range(len(records))]
    assert 10_000 <= newest[0] <= 11_000  # ten seconds on, and not half a million
    assert 509_000 <= newest[1] <= 510_000
    assert all(time_ms <= 510_000 for time_ms in newest)


def test_partitions_that_fell_idle_apart_are_ticked_together() -> None:
    log, clock = toy_log(), Clock()
    ticker, turns = Ticker(log, clock), 0
    for now_ms in range(0, 10_001, 50):
        clock.now_ms = now_ms
        if now_ms in (0, 300, 600):
            log.append(EVENTS, [Append(now_ms // 300, b"", encode(Tick(time_ms=now_ms)))])
        turns += ticker.turn() > 0
    assert turns <= 12
    assert all(9 <= log.end(EVENTS, p) <= 12 for p in range(PARTITIONS))


def test_after_refused_appends_a_tick_counts_the_whole_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    log, clock = toy_log(), Clock()
    log.append(EVENTS, [Append(0, b"", encode(Tick(time_ms=0)))])
    ticker = Ticker(log, clock)
    with monkeypatch.context() as away:

        def refuse(topic: str, records: object) -> list[int]:
            raise LogUnavailable("away")

        away.setattr(log, "append", refuse)
        for now_ms in range(0, 60_001, 250):
            clock.now_ms = now_ms
            with contextlib.suppress(LogUnavailable):
                ticker.turn()
    clock.now_ms = 61_000
    assert ticker.turn() == 1
    assert decode(log.read(EVENTS, 0, 1)[0].value).time_ms == 61_000


def test_a_clock_that_was_set_moves_no_event_time_and_stops_no_tick() -> None:
    log, clock = toy_log(), Clock()
    log.append(EVENTS, [Append(0, b"", encode(Tick(time_ms=0)))])
    ticker, month_ms = Ticker(log, clock), 30 * 86_400_000
    for ahead_ms in (0, month_ms, 0, -5_000):
        for now_ms in range(100_000, 110_001, 50):
            clock.now_ms = now_ms + ahead_ms
            ticker.turn()
    times = [decode(r.value).time_ms for r in log.read(EVENTS, 0, 0)]
    assert times == sorted(times) and 30_000 <= times[-1] <= 41_000


def test_busy_partitions_are_not_ticked() -> None:
    log, clock = toy_log(), Clock()
    log.append(EVENTS, [Append(p, b"", encode(Tick(time_ms=0))) for p in (0, 1)])
    ticker, appended = Ticker(log, clock), 0
    for now_ms in range(0, 5000, 250):
        clock.now_ms = now_ms
        if now_ms % 500 == 0:
            log.append(EVENTS, [Append(0, b"", encode(Tick(time_ms=now_ms)))])
            appended += 1
        ticker.turn()
    assert log.end(EVENTS, 0) == 1 + appended and log.end(EVENTS, 1) > 3


def test_a_tick_a_second_carries_event_time_at_its_pace_and_none_while_it_is_held() -> None:
    log, start_ms, machine = toy_log(), 1_577_836_800_000, Clock()
    pace = Pace(machine_ns=0, event_ms=start_ms, speed=1_000.0, until_ns=10_000_000_000)
    ticker = Ticker(log, EventClock(lambda: pace, lambda: machine.now_ms * 1_000_000))
    log.append(EVENTS, [Append(0, b"", encode(Tick(time_ms=start_ms)))])
    for now_ms in range(0, 30_001, 50):  # it is held after ten seconds
        machine.now_ms = now_ms
        ticker.turn()
    times = [decode(r.value).time_ms - start_ms for r in log.read(EVENTS, 0, 0)]
    assert 9 <= len(times) <= 12 and times == sorted(set(times))
    assert 900_000 <= times[2] - times[1] <= 1_300_000 and times[-1] == 10_000_000
