"""Folds the topic ``control``: the lifecycle of model lines, and the newest reaction to drift."""

from experiments.promotion.epoch_model import config_at
from experiments.promotion.lifecycle import Lifecycle
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Reaction
from recsys.events.records import CONTROL, unpack
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE


class ControlReader:
    """Folds ``control`` from its beginning, in turns; skips unreadable records."""

    def __init__(self, log: Log) -> None:
        self._log, self._offset = log, log.begin(CONTROL, 0)
        self.lifecycle = Lifecycle()
        self.reaction = Reaction()

    def turn(self) -> list[Control]:
        """Folds and returns the new records."""
        messages: list[Control] = []
        while records := self._log.read(CONTROL, 0, self._offset):
            self._offset = records[-1].offset + 1
            for record in records:
                try:
                    message: Control = unpack(record.value, Control)  # type: ignore[arg-type]
                except UNREADABLE:
                    continue
                self.lifecycle.fold(message)
                if isinstance(message, Reaction):
                    self.reaction = message
                messages.append(message)
        return messages

    def live_epoch(self, line: str, otherwise: int = 0) -> int:
        """The live epoch if it is of this line, else ``otherwise``."""
        live = self.lifecycle.live
        return live.epoch if live is not None and live.line == line else otherwise


def config_now(log: Log, config: Config, line: str, epoch: int) -> Config:
    """The configuration of a line's epoch, by the current records of ``control``."""
    control = ControlReader(log)
    control.turn()
    return config_at(config, control.lifecycle, line, epoch)
