"""Which epoch of a line is live, as ``control`` says: a part asks when it starts, and keeps to it."""

from typing import Any

from recsys.consumer import UNREADABLE
from recsys.log import Log
from recsys.records import CONTROL, Control, Live, unpack
from training.line import MAIN


def live_epoch(log: Log, line: str = MAIN) -> int:
    """The epoch of the newest live record of a line; 0 where there is none yet."""
    return live_epochs(log, line)[-1]


def live_epochs(log: Log, line: str = MAIN) -> list[int]:
    """All epochs that a line has lived in, in order; 0 is always the first. An epoch whose making ended in
    the middle isn't among them, though it has records of steps."""
    epochs, offset = [0], log.begin(CONTROL, 0)
    while records := log.read(CONTROL, 0, offset):
        for record in records:
            try:
                said: Any = unpack(record.value, Control)  # type: ignore[arg-type]
            except UNREADABLE:
                continue
            if isinstance(said, Live) and said.line == line:
                epochs.append(said.epoch)
        offset = records[-1].offset + 1
    return epochs
