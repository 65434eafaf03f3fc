"""When a worker has learned all of an epoch, and may go on in the next one.

The sequencer writes no record of an epoch after the first of the next. So all workers see the same last step,
whenever each of them looks, and none leaves the others waiting for its lanes.
"""

from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log
from training.lines.control import ControlReader
from training.steps.lineage import last_steps
from training.steps.sequencer_loop import last_place


class EpochEnd:
    """Looks, for a worker of a line's epoch, for the end of it."""

    def __init__(self, log: Log, line: str, epoch: int) -> None:
        self._log, self._line, self._epoch = log, line, epoch
        self._control = ControlReader(log)
        self._last: int | None = None  # step of the epoch, once it is known

    def left_for(self) -> int | None:
        """The epoch that is live by now, whatever of this one is learned; None where this one is."""
        self._control.turn()
        live = self._control.live_epoch(self._line, self._epoch)
        return live if live > self._epoch else None

    def following(self, learned: int) -> int | None:
        """The epoch that goes on, where ``learned`` is the last step of this one; None until then. Ask it
        when there is nothing to learn."""
        live = self.left_for()
        if live is None or not self._begun(live):
            return None
        if self._last is None:
            partitions = self._log.partitions(EXAMPLES)
            self._last = last_place(self._log, self._line, self._epoch, partitions).step
        return live if learned >= self._last else None

    def _begun(self, live: int) -> bool:
        """Whether the sequencer has written a record of the epoch: then its newest is one."""
        newest = last_steps(self._log)[-1:]
        return [(step.line, step.epoch) for step in newest] == [(self._line, live)]
