"""Folds the topic ``control``: the lifecycle of model lines."""

from experiments.promotion.epoch_model import config_at, features_at
from experiments.promotion.lifecycle import Lifecycle
from recsys.config.system_config import Config
from recsys.events.control_records import Control, Live, ModelSize
from recsys.events.records import CONTROL, pack
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append, Log
from recsys.process.log_consumer import Consumer, decoded, readable
from training.lines.line import MAIN


class ControlReader:
    """Folds ``control`` from its beginning, in turns; skips unreadable records."""

    def __init__(self, log: Log) -> None:
        self._consumer = Consumer(log, CONTROL, [0])
        self.lifecycle = Lifecycle()

    def turn(self) -> list[Control]:
        """Folds and returns the new records."""
        messages: list[Control] = []
        for _, message in decoded(self._consumer.drain(), Control):
            self.lifecycle.fold(message)
            messages.append(message)
        return messages

    def live_epoch(self, line: str, otherwise: int = 0) -> int:
        """The live epoch if it is of this line, else ``otherwise``."""
        live = self.lifecycle.live
        return live.epoch if live is not None and live.line == line else otherwise


def lifecycle_of(log: Log) -> Lifecycle:
    """The lifecycle as of the records that the log has."""
    control = ControlReader(log)
    control.turn()
    return control.lifecycle


def model_now(
    log: Log, config: Config, features: FeatureSet, line: str, epoch: int
) -> tuple[Config, FeatureSet]:
    """The configuration of a line's epoch, and what its model reads, by the records of ``control``."""
    lifecycle = lifecycle_of(log)
    return config_at(config, lifecycle, line, epoch), features_at(features, lifecycle, line, epoch)


def live_epoch(log: Log, line: str = MAIN) -> int:
    """The epoch of the newest live record of a line; 0 before the first."""
    return live_epochs(log, line)[-1]


def live_epochs(log: Log, line: str = MAIN) -> list[int]:
    """All epochs in which a line was live, in order, 0 first."""
    records = readable(log, CONTROL, Control)
    return [0, *(live.epoch for live in records if isinstance(live, Live) and live.line == line)]


def append_live_record(
    log: Log, line: str, epoch: int, reason: str, time_ms: int,
    base_step: int = 0, parent_epoch: int = 0, size: ModelSize | None = None,
) -> None:  # fmt: skip
    """Moves the live pointer to an epoch that begins after step ``base_step`` of ``parent_epoch``."""
    live = Live(
        line=line, epoch=epoch, reason=reason, time_ms=time_ms, base_step=base_step,
        parent_epoch=parent_epoch, size=size,
    )  # fmt: skip
    append_control(log, live)


def append_control(log: Log, *records: Control) -> list[int]:
    """Appends records to ``control``; returns their offsets."""
    return log.append(CONTROL, [Append(0, b"", pack(record)) for record in records])
