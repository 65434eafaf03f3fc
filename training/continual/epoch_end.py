"""Detects when a worker has learned all of an epoch and may continue in the next one. The sequencer writes no
record of an epoch after the first of the next, so all workers see the same last step."""

from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log
from training.lines.control import ControlReader
from training.steps.lineage import last_steps
from training.steps.sequencer_loop import last_position


class EpochEnd:
    """Looks for the end of a line's epoch, for a worker."""

    def __init__(self, log: Log, line: str, epoch: int) -> None:
        self._log, self._line, self._epoch = log, line, epoch
        self._control = ControlReader(log)
        self._last: int | None = None  # step of the epoch, once it is known

    def left_for(self) -> int | None:
        """The epoch that is live now, whatever was learned of this one; None while this one is live."""
        self._control.turn()
        live = self._control.live_epoch(self._line, self._epoch)
        return live if live > self._epoch else None

    def following(self, learned: int) -> int | None:
        """The next epoch if ``learned`` is the last step of this one, else None. Call it when idle."""
        live = self.left_for()
        if live is None:
            return None
        newest = [(step.line, step.epoch) for step in last_steps(self._log)[-1:]]
        if newest != [(self._line, live)]:  # the sequencer may still write records of this epoch
            return None
        if self._last is None:
            partitions = self._log.partitions(EXAMPLES)
            self._last = last_position(self._log, self._line, self._epoch, partitions).step
        return live if learned >= self._last else None
