"""Looks up which epochs of a line are or were live, in ``control``."""

from recsys.events.control_records import Control, Live
from recsys.events.records import CONTROL
from recsys.log.protocol import Log
from recsys.process.log_consumer import readable
from training.lines.line import MAIN


def live_epoch(log: Log, line: str = MAIN) -> int:
    """The epoch of the newest live record of a line; 0 before the first."""
    return live_epochs(log, line)[-1]


def live_epochs(log: Log, line: str = MAIN) -> list[int]:
    """All epochs in which a line was live, in order, 0 first; without those whose creation was
    interrupted."""
    records = readable(log, CONTROL, Control)
    return [0, *(live.epoch for live in records if isinstance(live, Live) and live.line == line)]
