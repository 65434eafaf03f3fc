"""The step records that led to where a line is, over all its epochs: each begins with what it replaced.

An epoch that begins from the snapshot of step s has records of its own from s + 1 on; those of earlier epochs
after s are no part of the line's history any more.
"""

from collections.abc import Sequence

from recsys.log import Log
from recsys.records import Live, Step
from training.step_reader import StepReader


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
