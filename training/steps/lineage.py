"""The step records that led to where a line is, over all its epochs: each begins with what it replaced.

An epoch that begins from the snapshot of step s has records of its own from s + 1 on; those of earlier epochs
after s are no part of the line's history any more.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from recsys.events.control_records import Live
from recsys.events.records import STEPS, Step, unpack
from recsys.log.protocol import Log, newest_first
from recsys.process.log_consumer import UNREADABLE
from training.steps.step_reader import StepReader

CAUGHT_UP: Final = (
    32  # steps behind the newest, some seconds: what is scored then is the traffic of now
)
_AHEAD: Final = 256  # steps looked at for where each partition goes on
_AT_END: Final = 64  # step records that are read for the newest


class Lineage:
    """As a ``StepReader``, of a line with several epochs. ``lives``: its live records, in order."""

    def __init__(self, log: Log, line: str, lives: Sequence[Live]) -> None:
        self._log, self._line = log, line
        self._since = {0: 0} | {live.epoch: live.since for live in lives if live.line == line}
        self._readers: dict[int, StepReader] = {}

    @property
    def offset(self) -> int:
        """The next offset of ``steps`` that would be read."""
        return max((reader.offset for reader in self._readers.values()), default=0)

    def epoch_of(self, step: int) -> int:
        """The epoch whose record of a step counts."""
        return max((e for e, since in self._since.items() if since < step), default=0)

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
    """The newest step records, of any line, in order."""
    found = list[Step]()
    for record in islice(newest_first(log, STEPS, 0, first=_AT_END), _AT_END):
        with suppress(*UNREADABLE):
            found.append(unpack(record.value, Step))
    return found[::-1]


def newest_step(log: Log, line: str, epoch: int) -> int:
    """The newest step of an epoch among these; 0 where there is none."""
    own = [step.step for step in last_steps(log) if (step.line, step.epoch) == (line, epoch)]
    return max(own, default=0)


def ancestors(lives: Sequence[Live], epoch: int) -> set[int]:
    """An epoch, and those that it came of: what they learned is its history."""
    found, of = {epoch}, {live.epoch: live.of for live in lives}
    while epoch in of and of[epoch] < epoch:
        epoch = of[epoch]
        found.add(epoch)
    return found


def starts_after(reader: StepReader | Lineage, step: int) -> dict[int, int]:
    """Where the steps after ``step`` begin in ``examples``, by partition, of those that the next ones touch.

    For those that they don't touch see ``training.candidates.director.ends_before``.
    """
    starts: dict[int, int] = {}
    for number in range(step + 1, step + 1 + _AHEAD):
        record = reader.record(number)
        if record is None:
            break
        for part in record.ranges:
            starts.setdefault(part.partition, part.start)
    return starts
