"""Which epoch of a line is live, as ``control`` says: a part asks when it starts, and keeps to it."""

from recsys.events.control_records import Control, Live
from recsys.events.records import CONTROL
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from training.lines.line import MAIN


def live_epoch(log: Log, line: str = MAIN) -> int:
    """The epoch of the newest live record of a line; 0 where there is none yet."""
    return live_epochs(log, line)[-1]


def live_epochs(log: Log, line: str = MAIN) -> list[int]:
    """All epochs that a line has lived in, in order; 0 is always the first. An epoch whose making ended in
    the middle isn't among them, though it has records of steps."""
    told = readable(log, CONTROL, Control)
    return [0, *(said.epoch for said in told if isinstance(said, Live) and said.line == line)]
