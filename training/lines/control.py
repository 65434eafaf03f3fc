"""What ``control`` says of lines: every part of training that keeps to the live line follows it so."""

from experiments.promotion.epoch_model import config_at
from experiments.promotion.lifecycle import Lifecycle
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Reaction
from recsys.events.records import CONTROL, unpack
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE


class ControlReader:
    """Folds ``control`` from its beginning, in turns. What can't be read is passed over. ``reaction``: the
    newest one to drift."""

    def __init__(self, log: Log) -> None:
        self._log, self._offset = log, log.begin(CONTROL, 0)
        self.lifecycle = Lifecycle()
        self.reaction = Reaction()

    def turn(self) -> list[Control]:
        """The records that are new; ``lifecycle`` has them already."""
        found: list[Control] = []
        while records := self._log.read(CONTROL, 0, self._offset):
            self._offset = records[-1].offset + 1
            for record in records:
                try:
                    said: Control = unpack(record.value, Control)  # type: ignore[arg-type]
                except UNREADABLE:
                    continue
                self.lifecycle.fold(said)
                if isinstance(said, Reaction):
                    self.reaction = said
                found.append(said)
        return found

    def live_epoch(self, line: str, otherwise: int = 0) -> int:
        """The epoch that is live, where this line is."""
        live = self.lifecycle.live
        return live.epoch if live is not None and live.line == line else otherwise


def config_now(log: Log, config: Config, line: str, epoch: int) -> Config:
    """The configuration of a line's epoch, as ``control`` says by now: for who starts in that epoch."""
    control = ControlReader(log)
    control.turn()
    return config_at(config, control.lifecycle, line, epoch)
