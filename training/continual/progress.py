"""How the trainer gets on, read from what the shards publish: the driver needs no word from its workers."""

from contextlib import suppress
from typing import Final

import msgspec

from recsys.events.records import DELTAS, EXAMPLES, STEPS, unpack
from recsys.log.protocol import Log, LogLost, read_range
from recsys.observability.recent_delays import RecentDelays
from recsys.process.log_consumer import UNREADABLE
from recsys.process.part_process import Heartbeat
from training.continual.prequential import Prequential
from training.lines.control import ControlReader
from training.steps.step_reader import StepReader

_LOOK_EVERY_MS: Final = 1_000
_P95: Final = "view_to_learned_p95_ms"
_LOOKED: Final = 128  # examples, each time, of the steps that were learned first


class Told(msgspec.Struct):
    """What is read of a delta; its rows are passed over."""

    line: str
    epoch: int
    step: int
    part: int
    time_ms: int = 0
    metrics: dict[str, float] = {}


class _Viewed(msgspec.Struct):
    """What is read of an example to know how long it took."""

    view_ended_ms: int = 0
    correction: bool = False


class Progress:
    """The newest step of a line and the sums of its metrics since this began."""

    def __init__(self, log: Log, line: str, epoch: int = 0) -> None:
        self._log, self._line, self._epoch = log, line, epoch
        self._control = ControlReader(log)
        self._steps = StepReader(log, line, epoch)
        self._offset = log.end(DELTAS, 0)
        self._decoder = msgspec.msgpack.Decoder(Told)
        self._told = dict[str, float]()  # of ``sums``, in the heartbeat
        self._behind_ms: int | None = None
        self._prequential = Prequential()
        self._now_ms = self._looked_ms = self._to_look = 0  # examples, until the next second
        self.delays = RecentDelays()  # from the end of a view to its having been learned
        self.delta_bytes = 0  # of all lines
        self._told_bytes = 0
        self.step = 0
        self.unreadable = 0
        self.time_ms = 0  # event time of the newest example learned
        self.sums: dict[str, float] = {}
        self.last: dict[str, float] = {}  # the newest step's own

    def turn(self, now_ms: int) -> int:
        """Reads what was published; returns how many steps that were. It goes on with the epoch that is live
        by then."""
        steps, self._now_ms = 0, now_ms
        if self._control.turn() and self._control.live_epoch(self._line, self._epoch) > self._epoch:
            self._epoch, self.step = self._control.live_epoch(self._line), 0
            self._steps = StepReader(self._log, self._line, self._epoch)
            self._prequential = Prequential()  # another model
        while records := self._log.read(DELTAS, 0, self._offset, 200):
            self._offset = records[-1].offset + 1
            for record in records:
                self.delta_bytes += len(record.value)
                try:
                    told = self._decoder.decode(record.value)
                except (msgspec.MsgspecError, RecursionError):
                    self.unreadable += 1  # replicas find the gap, and mend it from a snapshot
                    continue
                steps += self._take(told)
        if steps:
            self._behind_ms = now_ms - self.time_ms
            if now_ms - self._looked_ms >= _LOOK_EVERY_MS:
                self._looked_ms, self._to_look = now_ms, _LOOKED
            for number in range(max(1, self.step - steps + 1), self.step + 1):
                if self._to_look > 0:
                    self._look(number, now_ms)
        return steps

    def _look(self, number: int, now_ms: int) -> None:
        """How long some examples of a step took, from the end of their views."""
        record, ended = self._steps.record(number), list[int]()
        ranges = record.ranges if record else []
        for its in ranges:
            stop = min(its.stop, its.start + -(-self._to_look // len(ranges)))
            with suppress(LogLost):
                for found in read_range(self._log, EXAMPLES, its.partition, its.start, stop):
                    with suppress(*UNREADABLE):
                        viewed = unpack(found.value, _Viewed)
                        if viewed.view_ended_ms and not viewed.correction:
                            ended.append(viewed.view_ended_ms)
        self._to_look -= sum(its.stop - its.start for its in ranges)
        self.delays.since(ended, now_ms)

    def tell(self, beat: Heartbeat) -> None:
        """Puts it into the heartbeat. ``learned_after_s``: from the event that made the newest example to
        its being learned; of no meaning where a past log is replayed."""
        for name in ("steps", "examples", "left_out"):
            value = self.sums.get(name, 0.0)
            beat.add(name, value - self._told.get(name, 0.0))
            self._told[name] = value
        beat.add("delta_bytes", self.delta_bytes - self._told_bytes)
        self._told_bytes = self.delta_bytes
        beat.gauge("unreadable_deltas", self.unreadable)
        if not self.step:
            return
        beat.gauge("step", self.step)
        if self._behind_ms is not None:
            beat.gauge("learned_after_s", self._behind_ms / 1000)
        beat.only(_P95, self.delays.p95(_P95, self._now_ms))
        place = self._steps.place(self.step)
        if place is not None:
            beat.offsets(STEPS, [place + 1])
        for name, value in self.losses().items():
            beat.gauge(name, value)
        for name, value in self._prequential.figures().items():
            beat.gauge(name, round(value, 4))

    @property
    def place(self) -> dict[str, str | int]:
        """The newest step that was learned."""
        return {"line": self._line, "epoch": self._epoch, "step": self.step}

    def losses(self) -> dict[str, float]:
        """The newest step's prequential losses, a mean over its examples, by name."""
        count = self.last.get("examples", 0.0)
        losses = {n: its for n, its in self.last.items() if n.startswith("loss.") and count}
        return {name: round(value / count, 4) for name, value in losses.items()}

    def _take(self, told: Told) -> int:
        if (told.line, told.epoch, told.part) != (self._line, self._epoch, 0):
            return 0
        if told.step <= self.step:  # a line that went back repeats its steps
            return 0
        self.step, self.time_ms, self.last = told.step, told.time_ms, told.metrics
        self._prequential.take(told.metrics)
        for name, value in (told.metrics | {"steps": 1.0}).items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return 1
