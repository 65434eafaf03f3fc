"""Keeps the live line's snapshots and the log after them; trims step records and, if space is low, deltas."""

import logging
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Final

from parameter_server.storage import snapshots
from recsys.clock import is_due, timer_of
from recsys.config.system_config import Config
from recsys.events.records import DELTAS, EXAMPLES, STEPS, Step, unpack
from recsys.log.protocol import Log, LogLost, newest_first, read_range
from recsys.process.disk_budget import SNAPSHOTS, Level
from recsys.process.log_consumer import UNREADABLE, decoded
from recsys.process.log_holders import end_dead_backup, holders
from recsys.process.space_file import SpaceReader
from training.archive.files import files_of
from training.lines.control import live_epochs
from training.lines.offset_lookup import first_at
from training.steps.delta_reader import DeltaVersion
from training.steps.lineage import starts_after
from training.steps.step_reader import StepReader

_TRIM_EVERY_MS: Final = 600_000
_MOST: Final = 200_000  # step records trimmed at a time: more than are cut meanwhile
_FEW: Final = 2  # snapshots
_AHEAD: Final = 256  # steps per read when searching for the end of a partition
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


class SnapshotKeeper:
    """Keeps the newest snapshots of the live line, and holds the log from the oldest one on. ``clock``:
    milliseconds."""

    def __init__(self, log: Log, config: Config, clock: Callable[[], int]) -> None:
        state = Path(config.state)
        self._log, self._folder, self._kept = log, state / "snapshots", config.step.snapshots_kept
        self._space = SpaceKeeper(log, state, clock)
        self._searched = 0  # offset of steps before which ends are held already
        self.removed = 0  # snapshots
        self.oldest: int | None = None  # step of the oldest kept snapshot

    def turn(self, line: str, epoch: int) -> None:
        """Removes old snapshots, then holds the log from the oldest one left."""
        most = self._space.snapshots_kept(self._kept)
        self.removed += len(snapshots.prune(self._folder, line, most, epoch))
        steps = snapshots.complete_steps(self._folder, line, epoch)
        self._space.turn(line, epoch, steps)
        if not steps or steps[0] == self.oldest:
            return
        reader = StepReader(self._log, line, epoch)
        partitions = range(self._log.partitions(EXAMPLES))
        place = reader.place(steps[0] + 1)
        stop = self._log.end(STEPS, 0) if place is None else place
        starts = starts_after(reader, steps[0])
        quiet = {p for p in partitions if p not in starts and self._log.end(EXAMPLES, p) > 0}
        if quiet:
            lived = {e for e in live_epochs(self._log, line) if e < epoch} | {epoch}
            among = range(self._searched, stop)
            starts |= ends_before(self._log, line, lived, steps[0], among, quiet)
        for partition in partitions:
            self._hold(f"snapshots/{line}", partition, starts.get(partition))
        self.oldest, self._searched = steps[0], stop

    def _hold(self, name: str, partition: int, offset: int | None) -> None:
        if offset is None:
            if name in self._log.holds(EXAMPLES, partition):
                return
            offset = self._log.begin(EXAMPLES, partition)
        try:
            self._log.hold(name, EXAMPLES, partition, offset)
        except LogLost as error:  # too late: the line can't go back to that snapshot
            _LOG.error("%s: %s", name, error)


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


def ends_before(
    log: Log, line: str, epochs: Set[int], step: int, among: range, partitions: Set[int]
) -> dict[int, int]:
    """End offsets in ``partitions`` of ``examples`` of the steps up to ``step``, among the step records at
    the offsets ``among``, read backwards. ``epochs``: with those it descends from. A partition that they
    don't touch keeps its previous hold: too much is kept, never too little."""
    ends = dict[int, int]()
    records = newest_first(log, STEPS, 0, among.start, among.stop, _AHEAD)
    for _, other in decoded(records, Step):
        if len(ends) >= len(partitions):
            break
        if other.line == line and other.epoch in epochs and other.step <= step:
            for part in other.ranges:
                if part.partition in partitions:
                    ends.setdefault(part.partition, part.stop)
    return ends
