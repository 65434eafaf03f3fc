"""Folds with several workers as processes: one is killed, their number changes, and nothing shows it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.harness.live_system import end
from benchmarks.harness.memory_sessions import MemorySessions
from benchmarks.learning.bench_join import draw_events
from recsys.config.log_config import LogConfig
from recsys.config.part_configs import WorkersConfig
from recsys.config.system_config import Config, JoinConfig
from recsys.events.event_types import Event, Tick, encode
from recsys.events.records import EVENTS, EXAMPLES, ITEM_STATE, ItemState, record_of, topics, unpack
from recsys.features.feature_set_file import feature_set
from recsys.log.protocol import Append, Log, MemoryLog, read_range
from recsys.process.open_log import open_log
from recsys.process.part_process import read_beat
from recsys.process.worker_share import Share
from runtime.cli.up import start
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file
from runtime.supervision.system_status import gather
from serving.sessions.counter_loop import CounterLoop
from serving.sessions.counter_sums import SumLoop
from serving.sessions.item_states import newest_offsets
from serving.sessions.session_loop import SessionLoop
from serving.sessions.session_store import RedisFoldStore
from tests.support.plan_config import config_in
from tests.support.systems.live_system import until
from training.archive.writer import archived_rows
from training.joining.joiner_loop import JoinerLoop

pytestmark = [pytest.mark.services, pytest.mark.pairs(14)]
PARTITIONS, EVENTS_N = 6, 12_000
PARTS = ("session-fold", "joiner", "counters", "archive")
WAIT_S = 60.0


class Folds:
    """A system of parts with workers alone, whose events the test appends."""

    def __init__(self, state: Path) -> None:
        log, join = LogConfig(partitions=PARTITIONS), JoinConfig(window_s=60.0, horizon_s=600.0)
        self.config = replace(config_in(state, log=log), join=join)
        self.state = state

    def up(self, workers: int) -> None:
        each = WorkersConfig(session_fold=workers, joiner=workers, counters=workers, archive=workers)
        status = start(replace(self.config, workers=each), only=list(PARTS), detach=True)
        assert status == 0, (self.state / "run" / "up.out").read_text()[-2000:]

    def pid(self, name: str) -> int:
        running = run_file.read(self.state)
        assert running is not None
        [process] = [part.process for part in running.parts if part.name == name]
        return process.pid if process is not None else 0

    def is_done(self, log: Log) -> bool:
        """Whether the workers have folded all partitions to their ends. The newest record of each is a tick,
        which counts nothing: alone it isn't published."""
        ends = {p: log.end(EVENTS, p) for p in range(PARTITIONS)}
        published = newest_offsets(log, (ITEM_STATE, 0), "", range(PARTITIONS))
        if not published or any(n < ends[p] - 1 for p, n in enumerate(published)):
            return False
        for part in PARTS:
            beats = [read_beat(path) for path in (self.state / "run").glob(f"{part}.[0-9].json")]
            reached = dict.fromkeys(range(PARTITIONS), 0)
            for beat in filter(None, beats):
                for partition, offset in enumerate(beat.offsets.get(EVENTS, [])):
                    reached[partition] = max(reached[partition], offset)
            if reached != ends:
                return False
        return True

    def sessions(self) -> dict[str, bytes]:
        config, _ = plans.read(self.state)
        with closing(RedisFoldStore(config.sessions.url, 60)) as store:
            names = sorted(key.decode() for key in store._client.scan_iter("session:*"))
            users = [name.removeprefix("session:") for name in names]
            return {u: b for u, b in zip(users, store.load(users), strict=True) if b is not None}


def examples_of(log: Log) -> list[list[bytes]]:
    return [
        [r.value for r in read_range(log, EXAMPLES, p, 0, log.end(EXAMPLES, p))] for p in range(PARTITIONS)
    ]


def counters_of(log: Log) -> dict[int, tuple[int, bytes]]:
    """Time and values of each counter, as replicas have read them."""
    rows, table = {}, feature_set(Config()).counter_table()
    for record in read_range(log, ITEM_STATE, 0, log.begin(ITEM_STATE, 0), 1 << 62):
        state = unpack(record.value, ItemState)
        table.put(state.keys, state.values, state.last_ms)
    for key, values, last_ms in zip(*table.export(), strict=True):
        rows[int(key)] = int(last_ms), values.tobytes()
    return rows


def alone(log: Log, config: Config) -> tuple[dict[str, bytes], list[list[bytes]], Log]:
    """Sessions and examples that one worker of each fold makes of the same events, and the log with the
    counters of two."""
    copy = MemoryLog()
    for topic in topics(PARTITIONS):
        copy.create(topic)
    for partition in range(PARTITIONS):
        records = read_range(log, EVENTS, partition, 0, log.end(EVENTS, partition))
        copy.append(EVENTS, [Append(partition, r.key, r.value) for r in records])
    features, sessions = feature_set(config), MemorySessions()
    loop = SessionLoop(copy, sessions, features, lambda: 0, config.sessions.seen)
    joiner = JoinerLoop(copy, config, features, lambda: 0)
    while loop.turn() + joiner.turn():
        pass
    shares = Share(0, 2), Share(1, 2)
    counting = [CounterLoop(copy, features, bounds=config.bounds, share=share) for share in shares]
    for each in (*counting, SumLoop(copy, features)):
        while each.turn():
            pass
        each.publish()
    return sessions.blobs, examples_of(copy), copy


def append(log: Log, events: list[Event], pause_s: float = 0.1) -> None:
    """Appends events in small batches, as they would come."""
    for start_at in range(0, len(events), 500):
        appends = [record_of(event, PARTITIONS) for event in events[start_at : start_at + 500]]
        log.append(EVENTS, appends)
        time.sleep(pause_s)


@pytest.fixture
def folds(tmp_path: Path) -> Iterator[Folds]:
    system = Folds(tmp_path)
    try:
        yield system
    finally:
        end(tmp_path)


def test_a_killed_worker_and_another_number_of_workers_change_nothing(folds: Folds) -> None:
    folds.up(workers=2)
    events = draw_events(EVENTS_N, seed=7)
    third = len(events) // 3
    with closing(open_log(folds.config)) as log:
        append(log, events[:third])
        names = ("session-fold.1", "joiner.1", "counters.1", "counters.2", "archive.1")
        killed = {name: folds.pid(name) for name in names}
        others = {name: folds.pid(name) for name in ("session-fold.0", "archive.0", "counters.0")}
        for pid in killed.values():
            os.kill(pid, signal.SIGKILL)
        append(log, events[third : 2 * third])
        until(
            lambda: all(folds.pid(name) not in (pid, 0) for name, pid in killed.items()),
            WAIT_S,
            "killed workers restart",
        )
        assert {name: folds.pid(name) for name in others} == others, "they restart alone"
        restarts = {part.name: part.restarts for part in gather(folds.state).parts}
        assert restarts["joiner.1"] == restarts["counters.1"] == 1 and restarts["joiner.0"] == 0
        end(folds.state)
        append(log, events[2 * third :], pause_s=0.0)
        folds.up(workers=3)
        tick = encode(Tick(time_ms=events[-1].time_ms + 120_000))
        log.append(EVENTS, [Append(partition, b"", tick) for partition in range(PARTITIONS)])
        until(lambda: folds.is_done(log), WAIT_S, "three workers fold all")
        sessions, examples, counted = alone(log, folds.config)
        assert counters_of(log) == counters_of(counted) != {}
        assert folds.sessions() == sessions
        assert examples_of(log) == examples and sum(map(len, examples)) > EVENTS_N // 2
        end(folds.state)  # the archive writes what it has read
        for topic in (EVENTS, EXAMPLES):
            rows = archived_rows(folds.state / "archive", topic, ("partition", "offset", "key"))
            assert list(rows) == [
                (p, record.offset, record.key)
                for p in range(PARTITIONS)
                for record in read_range(log, topic, p, 0, log.end(topic, p))
            ]


def test_a_second_joiner_of_a_partition_is_refused(folds: Folds) -> None:
    folds.up(workers=2)
    command = [sys.executable, "-m", "runtime.cli.part", "joiner.1", str(folds.state)]
    second = subprocess.run(command, timeout=60, check=False)
    assert second.returncode == 1
    beat = read_beat(folds.state / "run" / "joiner.1.json")
    log_text = (folds.state / "run" / "joiner.1.log").read_text()
    assert beat is not None and "partition 1 of joiner belongs to another process" in log_text
