"""Reads the step records that led to a line's state, across its epochs. An epoch that begins from the
snapshot of step s has records of its own from s + 1 on, which replace those of the epochs it descends from;
epochs that were rolled back are no part of it."""

from collections.abc import Sequence
from itertools import islice
from typing import Final

from recsys.events.control_records import Live
from recsys.events.records import STEPS, Step
from recsys.log.protocol import Log, newest_first
from recsys.process.log_consumer import decoded
from training.steps.step_reader import StepReader

# Steps behind the newest, some seconds: within them, current traffic is scored.
CAUGHT_UP: Final = 32
_AHEAD: Final = 256  # steps searched for the start of each partition
_AT_END: Final = 64  # step records read for the newest


class Lineage:
    """A ``StepReader`` for a line with several epochs. ``lives``: live records, up to that of the newest.
    ``bases``: the steps from whose snapshots the newest epoch and those that it descends from have begun."""

    def __init__(self, log: Log, line: str, lives: Sequence[Live]) -> None:
        self._log, self._line = log, line
        own = [live for live in lives if live.line == line]
        lived = ancestors(own, own[-1].epoch) if own else set()
        self.bases = {0: 0} | {live.epoch: live.base_step for live in own if live.epoch in lived}
        self._readers: dict[int, StepReader] = {}

    def epoch_of(self, step: int) -> int:
        """The epoch whose record of a step is part of the history."""
        return max((e for e, base in self.bases.items() if base < step), default=0)

    def record(self, step: int) -> Step | None:
        return self._reader(step).record(step)

    def place(self, step: int) -> int | None:
        return self._reader(step).place(step)

    def check_to_come(self, step: int) -> None:
        self._reader(step).check_to_come(step)

    def _reader(self, step: int) -> StepReader:
        epoch = self.epoch_of(step)
        if epoch not in self._readers:
            self._readers[epoch] = StepReader(self._log, self._line, epoch)
        return self._readers[epoch]


def last_steps(log: Log) -> list[Step]:
    """The newest step records of any line, in order."""
    records = decoded(newest_first(log, STEPS, 0, first=_AT_END), Step)
    return [step for _, step in islice(records, _AT_END)][::-1]


def newest_step(log: Log, line: str, epoch: int) -> int:
    """The newest step of an epoch among ``last_steps``; 0 if it has none."""
    own = [step.step for step in last_steps(log) if (step.line, step.epoch) == (line, epoch)]
    return max(own, default=0)


def ancestors(lives: Sequence[Live], epoch: int) -> set[int]:
    """An epoch with those that it descends from, whose learning is its history."""
    epochs, parents = {epoch}, {live.epoch: live.parent_epoch for live in lives}
    while epoch in parents and parents[epoch] < epoch:
        epoch = parents[epoch]
        epochs.add(epoch)
    return epochs


def starts_after(reader: StepReader | Lineage, step: int) -> dict[int, int]:
    """The offsets in ``examples`` at which the steps after ``step`` begin, for the partitions they touch (for
    others: ``training.candidates.space_keeper.ends_before``)."""
    starts: dict[int, int] = {}
    for number in range(step + 1, step + 1 + _AHEAD):
        record = reader.record(number)
        if record is None:
            break
        for part in record.ranges:
            starts.setdefault(part.partition, part.start)
    return starts
