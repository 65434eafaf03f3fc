"""The table of the places that hold a copy of a user's data: each holds one before, and none after the user
was forgotten and unlearned on a running system."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from parameter_server.storage import snapshots
from recsys.events.hashing import key_of
from recsys.events.records import DEAD_LETTERS, DELTAS, DeadLetter, Delta, pack
from recsys.log.protocol import Append
from recsys.process.log_consumer import readable
from recsys.process.part_snapshot import PartState
from runtime.jobs.user_deletion import request_deletion
from serving.sessions.counter_loop import CounterLoop
from tests.support.training.promotion_run import EvenViewers, PromotionRun, config_of
from training.archive.writer import Archive
from training.candidates.rollback_impact import AffectedRequest, RollbackImpact, impact_file, write_impact
from training.deletion.erasure import EVERY_MS, PART, Eraser
from training.joining.joiner_loop import JoinerLoop
from training.lines.line import MAIN

pytestmark = pytest.mark.slow
USER = "forget-me"
CANDIDATE = "cand-1"
ROW = key_of("user", USER)


class Viewers(EvenViewers):
    def user(self, number: int) -> str:
        return USER if number % 8 == 0 else super().user(number)


class CopiesRun(PromotionRun):
    """A running system with all that writes files."""

    def __init__(self, folder: Path) -> None:
        config = config_of(folder)
        config = replace(config, step=replace(config.step, snapshots_kept=2))
        super().__init__(config, Viewers())
        system, self.folder = self.system, folder
        log, clock, features = system.log, system._clock, system.features
        self.joined = PartState(folder, "joiner")
        system.joiner = JoinerLoop(log, config, features, clock, self.joined)
        system.counters = CounterLoop(log, features, PartState(folder, "counters"), clock)
        self.archive = Archive(log, folder / "archive", clock)
        self.eraser = Eraser(log, folder / "archive", PartState(folder, PART), clock)

    async def show(self, lists: int) -> None:
        """Also saves each part's state, archives, and erases what may be."""
        await super().show(lists)
        self.system.joiner.save()
        self.system.counters.save()
        while self.archive.turn():
            pass
        self.archive.flush()
        self.system.now_ms += EVERY_MS
        self.eraser.turn()


def files_with_id(folder: Path, *globs: str) -> list[Path]:
    paths = [path for glob in globs for path in folder.glob(glob) if path.is_file()]
    return [path for path in paths if USER.encode() in path.read_bytes()]


def on_disk(*globs: str) -> Callable[[CopiesRun], bool]:
    """Whether files contain the user's id."""
    return lambda run: bool(files_with_id(run.folder, *globs))


def archived(topic: str) -> Callable[[CopiesRun], bool]:
    def check(run: CopiesRun) -> bool:
        files = (run.folder / "archive" / topic).rglob("*.parquet")
        return any(
            USER.encode() in column.as_py()
            for file in files
            for name in ("key", "value")
            for column in pq.read_table(file)[name]
        )

    return check


def in_snapshots(*lines: str) -> Callable[[CopiesRun], bool]:
    """Whether a snapshot of the lines has the user's row."""

    def check(run: CopiesRun) -> bool:
        folder = run.folder / "snapshots"
        versions = [
            snapshots.latest(folder, line, epoch, step).snapshot
            for line in lines
            for epoch in snapshots.epochs(folder, line)
            for step in snapshots.complete_steps(folder, line, epoch)
        ]
        arrays = [v.read(part) for v in versions if v is not None for part in range(v.parts)]
        return any(has_row(values) for part in arrays for values in part.values())

    return check


def has_row(values: Any) -> bool:
    return values.dtype == np.int64 and bool((values == ROW).any())


def in_rows(run: CopiesRun) -> bool:
    return any(has_row(v) for s in run.system.shards.shards for v in s.export()[0].values())


def in_wal(run: CopiesRun) -> bool:
    key = np.int64(ROW).tobytes()
    return any(key in path.read_bytes() for path in (run.folder / "parts" / "shards").glob("*"))


def in_deltas(run: CopiesRun) -> bool:
    tables = [t for delta in readable(run.system.log, DELTAS, Delta) for t in delta.tables]
    return any(has_row(np.frombuffer(t.keys, np.int64)) for t in tables)


def in_impacts(run: CopiesRun) -> bool:
    return USER.encode() in impact_file(run.folder, "main/9").read_bytes()


COPIES: dict[str, Callable[[CopiesRun], bool]] = {
    "log: events": on_disk("log/events*"),
    "log: examples": on_disk("log/examples*"),
    "log: dead letters": on_disk("log/dead_letters*"),
    "log: deltas": in_deltas,
    "archive: events": archived("events"),
    "archive: examples": archived("examples"),
    "session": lambda run: USER in run.system.sessions.blobs,
    "what outlives it": lambda run: USER in run.system.sessions.lasting,
    "joiner's state": on_disk("parts/joiner/*"),
    "rows": in_rows,
    "write-ahead files": in_wal,
    "snapshots": in_snapshots(MAIN),
    "snapshots of a line beside it": in_snapshots(CANDIDATE),
    "lists of a rollback": in_impacts,
}


async def test_each_copy_is_gone(tmp_path: Path) -> None:
    run = CopiesRun(tmp_path)
    system, log = run.system, run.system.log
    await run.start()
    await run.show(40)
    run.propose(CANDIDATE, run.trained(1))
    letter = DeadLetter(topic="events", partition=0, offset=0, reason="", raw=USER.encode())
    log.append(DEAD_LETTERS, [Append(0, USER.encode(), pack(letter))])
    requests = [AffectedRequest("r1", USER, 5, 1), AffectedRequest("r2", "u1", 6, 1)]
    write_impact(tmp_path, RollbackImpact("main/9", requests, []))
    wal = tmp_path / "parts" / "shards" / f"{MAIN}-0-0-of-1.wal"  # as a shard keeps it
    wal.parent.mkdir(parents=True)
    wal.write_bytes(np.int64(ROW).tobytes())
    await run.show(20)
    before = {name: check(run) for name, check in COPIES.items()}
    assert all(before.values()), before

    request_deletion(log, [USER], system.now_ms, "first")
    run.viewers = EvenViewers()  # the user doesn't come back
    for _ in range(120):
        await run.show(1)
        if run.eraser.done and run.lifecycle.unlearnings.pending is None:
            break
    await run.show(12)
    assert run.eraser.done == 1 and run.lifecycle.live.epoch == 1  # type: ignore[union-attr]
    after = {name: check(run) for name, check in COPIES.items()}
    assert not any(after.values()), after
    assert files_with_id(tmp_path, "*", "log/*", "parts/*/*", "quarantine/*") == []
    await system.stop()
