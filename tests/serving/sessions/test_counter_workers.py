"""Several workers count what one counts, whatever their number and whenever it changes."""

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from benchmarks.learning.bench_join import draw_events
from recsys.config.part_configs import WorkersConfig
from recsys.config.system_config import Config, CovisitConfig
from recsys.events.event_types import Event, Impression, Item, User, Verdict, encode
from recsys.events.records import (
    EVENTS,
    ITEM_COUNTS,
    ITEM_STATE,
    ITEMS,
    ItemState,
    pack,
    record_of,
    topics,
    unpack,
)
from recsys.features.covisits import COLUMNS
from recsys.features.item_counters import ItemCounters
from recsys.log.protocol import Append, MemoryLog
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Heartbeat, Stop
from recsys.process.part_snapshot import PartState
from recsys.process.worker_share import WHOLE, Share
from runtime.supervision.part_table import body
from serving.sessions.counter_loop import NAME, CounterLoop
from serving.sessions.counter_sums import SumLoop
from serving.sessions.item_states import newest_offsets, state_of
from tests.support import operator_app
from tests.support.operator_app import FEATURES

PARTITIONS, COLUMNS_OF_ROW = 8, FEATURES.counter_table().columns
Rows = dict[int, tuple[int, bytes]]


class Clock:
    """Each look at it is 60 ms later, so that some turns publish."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000

    def __call__(self) -> int:
        self.now_ms += 60
        return self.now_ms


def events() -> list[Event]:
    """A feed with newest events, different viewers, a quarantine that ends, and a viewer who is forgotten."""
    written = [e for e in operator_app.events(60) if not isinstance(e, Item)]
    at_ms, third = written[-1].time_ms, len(written) // 3
    written.insert(third, User(time_ms=at_ms, user_id="u3", removed=True))
    written.insert(2 * third, Verdict(time_ms=at_ms, user_id="u2", quarantined=True))
    return [*written, Verdict(time_ms=at_ms, user_id="u2", quarantined=False)]


FED = events()


def new_log(fed: Sequence[Event] = FED) -> MemoryLog:
    log = MemoryLog()
    for topic in topics(PARTITIONS):
        log.create(topic)
    items = (e for e in operator_app.events(60) if isinstance(e, Item))
    log.append(ITEMS, [Append(0, b"", encode(item)) for item in items])
    feed(log, fed)
    return log


def feed(log: MemoryLog, fed: Sequence[Event]) -> None:
    log.append(EVENTS, [record_of(event, PARTITIONS) for event in fed])


def worker(log: MemoryLog, folder: Path, share: Share = WHOLE) -> CounterLoop:
    """A worker as after its process was started (again)."""
    return CounterLoop(log, FEATURES, PartState(folder, NAME), Clock(), share=share)


def sums(log: MemoryLog, folder: Path) -> SumLoop:
    return SumLoop(log, FEATURES, PartState(folder, SumLoop.part), Clock())


def count_all(log: MemoryLog, folder: Path, workers: int, limit: int = 7) -> None:
    """Workers, and what adds up, from their start to their end."""
    shares = [Share(index, workers) for index in range(workers)]
    loops = [worker(log, folder, share) for share in shares]
    if workers > 1:
        loops.append(sums(log, folder))
    for loop in loops:
        while loop.turn(limit):
            pass
        loop.save()


def published(log: MemoryLog) -> Rows:
    """Counters of a replica that has read everything: time and values by key."""
    rows: Rows = {}
    for record in log.read(ITEM_STATE, 0, log.begin(ITEM_STATE, 0), 100_000):
        state = unpack(record.value, ItemState)
        keys, times = (np.frombuffer(part, np.int64) for part in (state.keys, state.last_ms))
        values = np.frombuffer(state.values, np.float32).reshape(-1, COLUMNS_OF_ROW)
        for key, time_ms, row in zip(keys.tolist(), times.tolist(), values, strict=True):
            rows[key] = time_ms, row.tobytes()
    return rows


def visits(log: MemoryLog, topic: str) -> list[list[int]]:
    """All visits that were published, in order of time."""
    rows: list[list[int]] = []
    for partition in range(log.partitions(topic)):
        for record in log.read(topic, partition, 0, 100_000):
            part = np.frombuffer(unpack(record.value, ItemState).visits, np.int64)
            rows += part.reshape(-1, COLUMNS).tolist()
    return sorted(rows)


def alone(folder: Path, fed: Sequence[Event] = FED) -> MemoryLog:
    log = new_log(fed)
    loop = worker(log, folder)
    loop.publish()  # everything, which is nothing yet, so that all visits are on the log
    while loop.turn(7):
        pass
    loop.save()
    return log


def of_workers(folder: Path, workers: int, fed: Sequence[Event] = FED) -> Rows:
    log = new_log(fed)
    count_all(log, folder, workers)
    return published(log)


def test_the_sums_of_any_number_of_workers_have_the_same_bits(tmp_path: Path) -> None:
    expected = of_workers(tmp_path / "2", 2)
    for workers in (3, 4, 8):
        assert of_workers(tmp_path / str(workers), workers) == expected
    one = published(alone(tmp_path / "1"))
    assert one.keys() == expected.keys() and len(one) > 100
    differ = 0
    for key, (time_ms, row) in one.items():
        assert expected[key][0] == time_ms or time_ms == -1
        ours, theirs = (np.frombuffer(r, np.float32) for r in (row, expected[key][1]))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        differ += bool((ours != theirs).any())
    assert differ, "sums of one table are rounded in another order"


def test_the_newest_event_of_all_partitions_stays(tmp_path: Path) -> None:
    log = new_log()
    count_all(log, tmp_path, 3)
    touched = {
        int(key)
        for partition in range(PARTITIONS)
        for record in log.read(ITEM_COUNTS, partition, 0, 100_000)
        if (state := unpack(record.value, ItemState)).touched
        for key in np.frombuffer(state.keys, np.int64)
    }
    one, several = published(alone(tmp_path / "1")), published(log)
    differ = {key for key in touched if several[key] != one[key]}
    assert len(touched) > 30 and len(differ) < 5
    # One table has no newest event after it was taken back; that of another partition is still there.
    assert all(one[key][0] == -1 for key in differ)


def test_each_visit_is_published_once_and_covisits_are_those_of_one(tmp_path: Path) -> None:
    log, one = new_log([]), alone(tmp_path / "1")
    count_all(log, tmp_path, 3)
    total = sums(log, tmp_path)
    total.publish()
    feed(log, FED)
    count_all(log, tmp_path, 3)
    assert visits(log, ITEM_COUNTS) == visits(one, ITEM_STATE) and len(visits(one, ITEM_STATE)) > 20
    ours, theirs = (
        loop.states.covisits for loop in (sums(log, tmp_path), worker(one, tmp_path / "1")) if loop.states
    )
    history = np.frombuffer(theirs.export().keys, np.int64)
    near = [
        dict(zip(*(part.tolist() for part in rows.near(history, np.ones(len(history)), 10**15)), strict=True))
        for rows in (ours, theirs)
    ]
    assert near[0] == pytest.approx(near[1], rel=1e-4) and near[0]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(1, 9), st.booleans(), st.booleans()), max_size=6
    )
)
def test_whenever_they_are_killed_or_their_number_changes_nothing_is_lost_or_counted_twice(
    changes: list[tuple[int, int, bool, bool]],
) -> None:
    """Each change: the number of workers, records that they read until they are killed, whether they and what
    adds up have saved before."""
    with TemporaryDirectory() as name:
        log, folder, fed = new_log([]), Path(name), iter(FED)
        for workers, limit, saves, sums_save in changes:
            feed(log, list(islice(fed, len(FED) // 6)))
            for index in range(0, workers, 2):  # each other worker runs
                loop = worker(log, folder, Share(index, workers))
                loop.turn(limit)
                loop.turn(limit)
                if saves:
                    loop.save()
            if workers > 1:
                total = sums(log, folder)
                total.turn(limit)
                if sums_save:
                    total.save()
        feed(log, list(fed))
        count_all(log, folder, 3)
        assert published(log) == of_workers(folder / "calm", 2)
        assert visits(log, ITEM_COUNTS) == visits(alone(folder / "one"), ITEM_STATE)
        calm = sums(new_log([]), folder / "none")
        assert calm.offsets == [0] * PARTITIONS


@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1)])
def test_replicas_keep_what_they_have_until_the_others_have_counted_as_much(
    tmp_path: Path, before: int, after: int
) -> None:
    log = new_log()
    count_all(log, tmp_path, before)
    had, end = published(log), log.end(ITEM_STATE, 0)
    loops = [worker(log, tmp_path, Share(index, after)) for index in range(after)]
    last = sums(log, tmp_path) if after > 1 else loops[0]
    for loop in loops[: after - 1]:
        while loop.turn(5):
            pass
        loop.publish()
    last.turn(5)
    last.publish()
    assert log.end(ITEM_STATE, 0) == end and published(log) == had
    count_all(log, tmp_path, after)
    assert log.end(ITEM_STATE, 0) > end and published(log).keys() == had.keys()
    folders = {path.parent.name for path in tmp_path.rglob("state.msgpack")}
    partitions = {f"counters-p{partition}" for partition in range(PARTITIONS)}
    assert folders & {"counters", *partitions} == ({"counters"} if after == 1 else partitions)


def test_a_worker_counts_and_holds_its_partitions_only(tmp_path: Path) -> None:
    log = new_log()
    loop = worker(log, tmp_path, Share(1, 2))
    while loop.turn():
        pass
    loop.save()
    assert [offset >= 0 for offset in loop.offsets] == [False, True] * 4
    partitions = range(PARTITIONS)
    assert [bool(log.holds(EVENTS, p)) for p in partitions] == [False, True] * 4
    sent = [log.end(ITEM_COUNTS, p) > 0 for p in partitions]
    assert sent == [p % 2 == 1 and log.end(EVENTS, p) > 0 for p in partitions] and any(sent)
    assert log.end(ITEM_STATE, 0) == 0


def test_a_sum_holds_what_it_has_not_saved(tmp_path: Path) -> None:
    log = new_log()
    count_all(log, tmp_path, 2)
    total, held = sums(log, tmp_path), [log.holds(ITEM_COUNTS, p) for p in range(PARTITIONS)]
    assert total.offsets == [log.end(EVENTS, p) for p in range(PARTITIONS)]
    assert all(0 <= hold["item-sums"] < end for hold, end in zip(held, total.places, strict=True) if end)
    total.save()
    held = [log.holds(ITEM_COUNTS, p) for p in range(PARTITIONS)]
    assert held == [{"item-sums": end} for end in total.places]


def turned(loop: CounterLoop) -> None:
    while loop.turn(7):
        pass
    loop.publish()


def test_an_unreadable_record_is_skipped_and_counted(tmp_path: Path) -> None:
    log, good = new_log(), state_of(([0], ""))
    short = structs.replace(
        good, keys=np.arange(2).tobytes(), last_ms=bytes(8), values=bytes(8 * COLUMNS_OF_ROW)
    )
    bad = [b"\xc1rubbish", pack(structs.replace(good, visits=bytes(9))), pack(short)]
    log.append(ITEM_COUNTS, [Append(0, b"", value) for value in bad])
    count_all(log, tmp_path, 2)
    total, beat = sums(log, tmp_path / "again"), Heartbeat("counters")
    turned(total)
    total.report(beat, 0)
    assert total.unreadable == beat.now().gauges["unreadable"] == len(bad)
    assert published(log) == of_workers(tmp_path / "calm", 2)


def test_without_its_snapshot_a_sum_waits_until_what_was_dropped_is_counted_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = new_log(FED[: len(FED) // 2])
    count_all(log, tmp_path, 2)
    feed(log, FED[len(FED) // 2 :])
    counting = [worker(log, tmp_path, Share(index, 2)) for index in range(2)]
    ends = [log.end(ITEM_COUNTS, p) for p in range(PARTITIONS)]
    for loop in counting:
        turned(loop)
        loop.save()
    had, end = published(log), log.end(ITEM_STATE, 0)
    log.release(SumLoop.part, ITEM_COUNTS)
    for p in range(PARTITIONS):
        log.trim(ITEM_COUNTS, p, ends[p])
    shutil.rmtree(tmp_path / "parts" / SumLoop.part)
    for _ in range(2):  # also from the snapshot that it takes meanwhile
        total, beat = sums(log, tmp_path), Heartbeat("counters")
        turned(total)
        total.save()
        total.report(beat, 0)
        assert log.end(ITEM_STATE, 0) == end and published(log) == had
        assert beat.now().gauges["partitions_lacking"] == sum(end > 0 for end in ends) > 2
    assert "remove parts/item-sums and all parts/counters-p*" in caplog.text
    for path in (tmp_path / "parts").iterdir():
        shutil.rmtree(path)
    loops = [worker(log, tmp_path, Share(index, 2)) for index in range(2)]
    loops[0].turn(3)
    loops[0].save()  # which mustn't forget what isn't sent yet
    loops[0] = worker(log, tmp_path, Share(0, 2))
    for loop in loops:
        turned(loop)
        loop.save()
    total = sums(log, tmp_path)
    turned(total)
    log.trim(ITEM_STATE, 0, end)
    assert published(log) == of_workers(tmp_path / "calm", 2)


def test_an_offset_counts_once_all_of_a_send_is_there(tmp_path: Path) -> None:
    log = new_log()
    turned(worker(log, tmp_path, Share(0, 2)))
    partition = max(range(0, PARTITIONS, 2), key=lambda p: log.end(ITEM_COUNTS, p))
    end, total = log.end(ITEM_COUNTS, partition), sums(log, tmp_path)
    sent = [unpack(r.value, ItemState) for r in log.read(ITEM_COUNTS, partition, 0)]
    first = next(n for n, state in enumerate(sent) if state.part + 1 == state.parts)
    assert 0 < first < end
    for read in range(first):
        total.turn(1)
        assert total.places[partition] == read + 1 and total.offsets[partition] == 0
    total.turn(1)
    assert total.offsets[partition] == sent[first].offsets[0] > 0


def test_visits_are_sent_once_whatever_another_set_has_sent_since(tmp_path: Path) -> None:
    log = new_log(FED[: len(FED) // 2])
    count_all(log, tmp_path, 2)
    feed(log, FED[len(FED) // 2 :])
    for index in range(2):
        turned(worker(log, tmp_path, Share(index, 2)))  # killed before it saves
    other = [Append(p, b"", pack(state_of(([0], "other")))) for p in range(PARTITIONS)]
    log.append(ITEM_COUNTS, 150 * other)
    count_all(log, tmp_path, 2)
    assert visits(log, ITEM_COUNTS) == visits(alone(tmp_path / "one"), ITEM_STATE)


def test_tables_divide_the_limits_of_memory(tmp_path: Path) -> None:
    log, covisits = new_log(), CovisitConfig(users=2 * PARTITIONS)
    loop = CounterLoop(log, FEATURES, now_ms=Clock(), covisits=covisits, share=Share(0, 2))
    assert {fold.visits.most for fold in loop.folds.values()} == {2}
    fold = ItemCounters(FEATURES, tables=100_000)  # which have two requests and five viewers each
    for event in FED:
        if isinstance(event, Impression):
            fold.impression(event, np.empty((0, 1), np.int64))
    for n in range(9):
        fold.user(User(time_ms=0, user_id=f"v{n}"))
    assert len(fold.context_by_request) == 2
    assert fold.operators.evicted["requests"] > 0 and fold.operators.evicted["viewers"] == 4


def test_a_worker_alone_releases_what_sums_held(tmp_path: Path) -> None:
    config = replace(Config(), state=str(tmp_path))
    with closing(open_log(config)) as log:
        create_topics(log, config)
        total = SumLoop(log, FEATURES, PartState(tmp_path, SumLoop.part), Clock())
        total.save()
        assert log.holds(ITEM_COUNTS, 0)
        stop = Stop()
        thread = Thread(target=body("counters", WorkersConfig()), args=(config, stop))
        thread.start()
        until = time.monotonic() + 20
        while log.holds(ITEM_COUNTS, 0) and time.monotonic() < until:
            time.sleep(0.02)
        stop.set()
        thread.join()
        assert not log.holds(ITEM_COUNTS, 0)
    assert not (tmp_path / "parts" / SumLoop.part / "state.msgpack").exists()


@pytest.mark.slow
def test_the_workers_of_the_part_publish_the_sums_of_a_log_on_disk(tmp_path: Path) -> None:
    workers = WorkersConfig(counters=2)
    config = replace(Config(), state=str(tmp_path), workers=workers)
    with closing(open_log(config)) as log:
        create_topics(log, config)
        log.append(EVENTS, [record_of(event, config.log.partitions) for event in draw_events(400, 3)])
        ends = [log.end(EVENTS, p) for p in range(config.log.partitions)]
        stops = [Stop() for _ in workers.names("counters")]
        threads = [
            Thread(target=body(name, workers), args=(config, stop))
            for name, stop in zip(workers.names("counters"), stops, strict=True)
        ]
        for thread in threads:
            thread.start()
        while newest_offsets(log, (ITEM_STATE, 0), "", range(len(ends))) != ends:
            assert all(thread.is_alive() for thread in threads)
            time.sleep(0.02)
        with pytest.raises(RuntimeError, match="partition 0 of item-sums belongs to another"):
            body("counters.2", workers)(config, Stop())
        for stop, thread in zip(stops, threads, strict=True):
            stop.set()
            thread.join()
        gauges = [stop.heartbeat.now().gauges for stop in stops]
        assert gauges[0]["counters"] > 0 and gauges[2]["covisit_rows"] > 0
        assert len(list((tmp_path / "parts").glob("counters-p*"))) == len(ends)
