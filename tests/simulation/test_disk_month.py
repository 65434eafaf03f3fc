"""Weeks of event time over real files, at a reduced rate and budget: log, archive, snapshots, and the space
level that each second's measurement gives."""

import gc
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from parameter_server.storage import snapshots
from recsys.config.safety_config import DiskConfig
from recsys.events.event_types import Tick, encode
from recsys.events.records import (
    DELTAS,
    EVENTS,
    EXAMPLES,
    STEPS,
    Delta,
    ErasedExample,
    Range,
    Step,
    pack,
    topics,
)
from recsys.log import sqlite_files
from recsys.log.protocol import Append
from recsys.log.sqlite_log import SqliteLog
from recsys.process.disk_budget import Level, topic_bytes
from recsys.process.malloc_tuning import return_freed_memory
from recsys.process.space_file import SpaceReader
from runtime.supervision.space_watch import SpaceWatch, bytes_by_kind
from tests.support.seeds import LONG
from tests.support.training.small_feed import START_MS
from training.archive.writer import Archive
from training.archive_part import BudgetedArchive
from training.candidates.space_keeper import SpaceKeeper

pytestmark = pytest.mark.steady

HOUR_MS = 3_600_000
CONFIG = DiskConfig(budget_gb=0.25)
PER_HOUR = {EVENTS: 40, EXAMPLES: 60, DELTAS: 8}
BYTES = {EVENTS: 10_000, EXAMPLES: 10_000, DELTAS: 120_000}
STEPS_PER_HOUR = 200
TURNS = 1  # an hour
HOURS = 720 if LONG else 400


class System:
    """The writers and keepers of a state folder in one thread, on a clock of event time."""

    def __init__(self, state: Path) -> None:
        self.state, self.now_ms = state, START_MS
        self.free = 10**12
        (state / "run").mkdir()
        self.log = SqliteLog(state / "log", clock=lambda: self.now_ms)
        for topic in topics(1, 72, topic_bytes(CONFIG, 1)):
            self.log.create(topic)
            self.log.connection(topic.name).db.execute("PRAGMA synchronous = OFF")
        self.watch = SpaceWatch(state, CONFIG, lambda: self.now_ms, lambda _: self.free)
        self.space = SpaceReader(state, lambda: self.now_ms)
        archive = Archive(self.log, state / "archive", lambda: self.now_ms)
        self.archive = BudgetedArchive(archive, state / "archive", self.space)
        self.keeper = SpaceKeeper(self.log, state, lambda: self.now_ms)
        self.keeper._space = self.space
        self.step = self.read = self.accepted = 0
        self.levels: list[Level] = []
        self.most = 0

    def measure(self) -> None:
        """What takes ten seconds in a running system."""
        self.watch._kinds = bytes_by_kind(self.state)
        self.watch.update()
        self.space._due_s = self.archive._due_s = 0.0
        self.levels.append(self.watch.space.level)
        self.most = max(self.most, self.watch.space.used)

    def hour(self, joiner_runs: bool = True) -> None:
        for _ in range(TURNS):
            self.now_ms += HOUR_MS // TURNS
            if not self.space.is_full():
                self._append(EVENTS, encode(Tick(time_ms=self.now_ms)))
                self.accepted = self.log.end(EVENTS, 0)
                self._append(EXAMPLES, pack(ErasedExample(sequence=0, closed_ms=self.now_ms)))
                self._learn()
            if joiner_runs:
                self._join()
            self.measure()
            while self.archive.turn():
                pass
            kept = self.keeper.snapshots_kept(3)
            snapshots.prune(self.state / "snapshots", "main", kept, 0)
            steps = snapshots.complete_steps(self.state / "snapshots", "main", 0)
            self.keeper.turn("main", 0, steps)
            self.log.hold("snapshots/main", EXAMPLES, 0, self.log.end(EXAMPLES, 0))

    def _append(self, topic: str, first: bytes) -> None:
        rest = [b"\xc1" + os.urandom(BYTES[topic]) for _ in range(PER_HOUR[topic] // TURNS)]
        self.log.append(topic, [Append(0, b"u", value) for value in (first, *rest)])

    def _learn(self) -> None:
        end = self.log.end(EXAMPLES, 0)
        ranges = [Range(0, end - PER_HOUR[EXAMPLES] // TURNS - 1, end)]
        steps = []
        for _ in range(STEPS_PER_HOUR // TURNS):
            self.step += 1
            steps.append(Step(line="main", epoch=0, step=self.step, ranges=ranges, examples=1, lanes=1,
                              time_ms=self.now_ms, config="c" * 40))  # fmt: skip
        self.log.append(STEPS, [Append(0, b"main", pack(step)) for step in steps])
        delta = Delta(line="main", epoch=0, step=self.step, base_step=0, part=0, parts=1)
        self._append(DELTAS, pack(delta))
        arrays = {"dense/values": np.zeros(200_000, np.float32)}
        meta = {"step": self.step}
        snapshots.write_part(self.state / "snapshots", "main", 0, self.step, 0, 1, arrays, meta)

    def _join(self) -> None:
        """Reads every acknowledged event, once and in order; raises LogLost if one is gone."""
        while records := self.log.read(EVENTS, 0, self.read):
            assert records[0].offset == self.read
            self.read = records[-1].offset + 1
        self.log.hold("joiner", EVENTS, 0, self.read)


def memory() -> int:
    gc.collect()
    return_freed_memory()  # tests before this one in the same process have left some
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.slow
def test_weeks_over_real_files_stays_within_the_budget_and_memory_is_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_files, "CHECKPOINT_PAGES", 40)  # write-ahead files are small, too
    monkeypatch.setattr(sqlite_files, "VACUUM_PAGES", 16)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    system = System(tmp_path)
    system.measure()
    before = 0
    for hour in range(HOURS):
        system.free = 10**7 if 350 <= hour < 360 else 10**12  # others fill the disk
        system.hour(joiner_runs=not 300 <= hour < 324)  # the joiner is down for a day
        if hour == 240:
            before = memory()
    levels = [system.levels[TURNS * hour :][:TURNS] for hour in range(HOURS)]
    assert system.most <= CONFIG.budget_gb * 10**9
    assert {level for hour in levels[:300] for level in hour} == {Level.OK}
    assert Level.FULL in levels[355] and system.levels[-1] is Level.OK
    assert {level for hour in levels[370:] for level in hour} == {Level.OK}
    assert system.read == system.accepted  # nothing that was acknowledged is lost
    assert system.accepted > (HOURS - 20) * PER_HOUR[EVENTS]
    kinds = bytes_by_kind(tmp_path)
    assert kinds["archive"] > 30_000_000  # history of days remains
    assert kinds["log/steps"] < 20_000_000 < HOURS * STEPS_PER_HOUR * 264
    assert memory() - before < 40_000 * (HOURS - 240)
    system.log.close()
