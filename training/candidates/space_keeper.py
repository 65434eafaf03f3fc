"""Keeps the director's share of the disk budget: step records, snapshots and, while space is low, deltas."""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from parameter_server.storage import snapshots
from recsys.clock import is_due, timer_of
from recsys.events.records import DELTAS, EXAMPLES, STEPS, Step, unpack
from recsys.log.protocol import Log, LogLost, read_range
from recsys.process.disk_budget import SNAPSHOTS, Level
from recsys.process.log_consumer import UNREADABLE
from recsys.process.log_holders import end_dead_backup, holders
from recsys.process.space_file import SpaceReader
from training.archive.files import files_of
from training.lines.offset_lookup import first_at
from training.steps.delta_reader import DeltaVersion

_TRIM_EVERY_MS: Final = 600_000
_MOST: Final = 200_000  # step records trimmed at a time: more than are cut meanwhile
_FEW: Final = 2  # snapshots
_STEPS_PER_EPOCH: Final = 1 << 40  # an upper bound
_LOG: Final = logging.getLogger(__name__)


class SpaceKeeper:
    """Trims what nothing needs any more. ``clock``: milliseconds."""

    def __init__(self, log: Log, state: Path, clock: Callable[[], int]) -> None:
        self._log, self._state, self._clock = log, state, clock
        self._timer_ms = timer_of(clock)
        self._space = SpaceReader(state)
        self._due_ms = 0
        self._named: list[str] = []

    def snapshots_kept(self, wanted: int) -> int:
        """Fewer than wanted while space is low, or snapshots have more than their share."""
        space = self._space.read()
        if space is None:
            return wanted
        over = space.kinds.get(SNAPSHOTS, 0) > space.snapshots or space.level >= Level.LOWER
        return min(wanted, _FEW) if over else wanted

    def turn(self, line: str, epoch: int, steps: Sequence[int]) -> None:
        """Trims what is due. ``steps``: of the complete snapshots of the live line, ascending."""
        if is_due(self._timer_ms(), self._due_ms, _TRIM_EVERY_MS):
            self._due_ms = self._timer_ms() + _TRIM_EVERY_MS
            end_dead_backup(self._log, self._state)
            trim_steps(self._log, self._state)
        space = self._space.read()
        if space is None:
            return
        if space.level >= Level.LOWER and steps:
            with suppress(LogLost):  # retention was faster: again with the next turn
                trim_deltas(self._log, line, epoch, steps[-_FEW:][0])
        named = [text for topic in space.over for text in holders(self._log, topic, self._clock())]
        names = [text.partition(" since ")[0] for text in named]
        if names and names != self._named:
            _LOG.warning("topics have more than their share of the disk: %s", "; ".join(named))
        self._named = names


def trim_steps(log: Log, state: Path) -> None:
    """Drops step records before the oldest snapshot of any line whose examples are neither on the log nor in
    the archive. The record of that snapshot's step stays: unlearning sees that learning went on before it."""
    folder = state / "snapshots"
    complete = [
        step
        for line in snapshots.lines(folder)
        for epoch in snapshots.epochs(folder, line)
        for step in snapshots.complete_steps(folder, line, epoch)
    ]
    begins = {p: log.begin(EXAMPLES, p) for p in range(log.partitions(EXAMPLES))}
    for file in files_of(state / "archive", EXAMPLES):
        begins[file.partition] = min(begins.get(file.partition, 0), file.first)
    begin = before = log.begin(STEPS, 0)
    for record in read_range(log, STEPS, 0, begin, begin + _MOST):
        try:
            step = unpack(record.value, Step)
        except UNREADABLE:
            continue
        is_left = any(part.stop > begins.get(part.partition, 0) for part in step.ranges)
        if is_left or step.step >= min(complete, default=0):
            break
        before = record.offset + 1
    log.trim(STEPS, 0, before)


def trim_deltas(log: Log, line: str, epoch: int, step: int) -> None:
    """Drops the deltas up to a step of which there is a snapshot."""

    def number(value: bytes) -> int | None:
        delta = unpack(value, DeltaVersion)
        return delta.epoch * _STEPS_PER_EPOCH + delta.step if delta.line == line else None

    log.trim(DELTAS, 0, first_at(log, DELTAS, 0, epoch * _STEPS_PER_EPOCH + step - 1, number))
