"""Follows the steps that a line has learned, by the metrics in the deltas of its first shard."""

from collections.abc import Iterator
from typing import Final

import msgspec

from recsys.events.records import DELTAS
from recsys.log.protocol import Log, LogLost
from recsys.process.log_consumer import UNREADABLE, Consumer
from training.lines.control import ControlReader

_READ: Final = 200


class DeltaVersion(msgspec.Struct):
    """The version that a delta leads to; its rows are skipped."""

    line: str
    epoch: int
    step: int


class DeltaMetrics(DeltaVersion):
    """The fields of a delta that are decoded; its rows are skipped."""

    part: int
    time_ms: int = 0
    metrics: dict[str, float] = {}


class LearnedSteps:
    """Steps of a line's live epoch from now on. ``step``: the newest; 0 before the first of an epoch."""

    def __init__(self, log: Log, control: ControlReader, line: str, epoch: int) -> None:
        self._log, self._control = log, control
        self.line, self.epoch, self.step = line, epoch, 0
        self._consumer = Consumer(log, DELTAS, [0], {0: log.end(DELTAS, 0)})
        self._decoder = msgspec.msgpack.Decoder(DeltaMetrics)
        self.delta_bytes = 0  # of all lines
        self.unreadable = 0  # replicas detect the gap and recover from a snapshot

    def follow(self) -> bool:
        """Reads ``control``; returns whether a later epoch of the line is live now."""
        self._control.turn()
        live = self._control.live_epoch(self.line, self.epoch)
        is_other = live > self.epoch
        if is_other:
            self.epoch, self.step = live, 0
        return is_other

    def read(self) -> Iterator[DeltaMetrics]:
        """Yields new steps, each once: a line that went back repeats some."""
        try:
            yield from self._new()
        except LogLost:  # trimmed: some steps are missed
            self._consumer.offsets[0] = self._log.begin(DELTAS, 0)
            yield from self._new()

    def _new(self) -> Iterator[DeltaMetrics]:
        for record in self._consumer.drain(_READ):
            self.delta_bytes += len(record.value)
            try:
                delta = self._decoder.decode(record.value)
            except UNREADABLE:
                self.unreadable += 1
                continue
            version = delta.line, delta.epoch, delta.part
            if version == (self.line, self.epoch, 0) and delta.step > self.step:
                self.step = delta.step
                yield delta
