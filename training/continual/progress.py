"""Tracks the trainer's progress from what the shards publish, without messages from its workers."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import msgspec

from recsys.clock import is_due
from recsys.events.records import EXAMPLES, STEPS
from recsys.log.protocol import Log, LogLost, read_range
from recsys.observability.recent_delays import RecentDelays
from recsys.process.log_consumer import decoded
from recsys.process.part_process import Heartbeat
from training.continual.prequential import Prequential
from training.lines.control import ControlReader
from training.steps.delta_reader import LearnedSteps
from training.steps.step_reader import StepReader

_LOOK_EVERY_MS: Final = 1_000
_LOG: Final = logging.getLogger(__name__)
_P95: Final = "view_to_learned_p95_ms"
_STILL: Final = 100  # steps with engagement in which no row of a table moves, until an alarm
_LOOKED: Final = 128  # examples whose delay is measured each time, of the first steps learned


class _Viewed(msgspec.Struct):
    """The fields of an example that its delay needs."""

    view_ended_ms: int = 0
    correction: bool = False


class Progress:
    """Tracks the newest step of a line and the sums of its metrics since the start."""

    def __init__(self, log: Log, line: str, epoch: int = 0) -> None:
        self._log = log
        self._learned = LearnedSteps(log, ControlReader(log), line, epoch)
        self._steps = StepReader(log, line, epoch)
        self._reported = dict[str, float]()  # totals already in the heartbeat
        self._behind_ms: int | None = None
        self._prequential = Prequential()
        self._now_ms = self._looked_ms = self._to_look = 0  # examples, until the next second
        self.delays = RecentDelays()  # from the end of a view to learning it
        self.time_ms = 0  # event time of the newest example learned
        self.still: dict[str, int] = {}  # steps with engagement, by table, since a row of it moved
        self.sums: dict[str, float] = {}
        self.last: dict[str, float] = {}  # metrics of the newest step

    def turn(self, now_ms: int) -> int:
        """Reads new deltas; returns their number of steps. Follows the line into the epoch that is live."""
        steps, self._now_ms = 0, now_ms
        if self._learned.follow():
            self._steps = StepReader(self._log, self._learned.line, self._learned.epoch)
            self._prequential = Prequential()  # another model
        for delta in self._learned.read():
            steps += 1
            self.time_ms, self.last = delta.time_ms, delta.metrics
            self._prequential.take(delta.metrics)
            self._watch_rows(delta.metrics)
            for name, value in (delta.metrics | {"steps": 1.0}).items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        if steps:
            self._behind_ms = now_ms - self.time_ms
            if is_due(now_ms, self._looked_ms + _LOOK_EVERY_MS, _LOOK_EVERY_MS):
                self._looked_ms, self._to_look = now_ms, _LOOKED
            for number in range(max(1, self.step - steps + 1), self.step + 1):
                if self._to_look > 0:
                    self._measure_delays(number, now_ms)
        return steps

    def _watch_rows(self, metrics: Mapping[str, float]) -> None:
        """Raises an alarm for a table that doesn't learn."""
        if not any(value for name, value in metrics.items() if name.startswith("happened.")):
            return
        for name, moved in metrics.items():
            kind, _, table = name.partition(".")
            if kind == "moved":
                self.still[table] = 0 if moved else self.still.get(table, 0) + 1
                if self.still[table] == _STILL:
                    _LOG.error(
                        "no row of %s has moved in %d steps with engagement: it can't learn. Set "
                        "model.vector_initial above 0, and see that the learning rate isn't tiny",
                        table,
                        _STILL,
                    )

    def _measure_delays(self, number: int, now_ms: int) -> None:
        """Measures the delay of some examples of a step, from the end of their views."""
        record, ended = self._steps.record(number), list[int]()
        ranges = record.ranges if record else []
        for part in ranges:
            stop = min(part.stop, part.start + -(-self._to_look // len(ranges)))
            with suppress(LogLost):
                records = read_range(self._log, EXAMPLES, part.partition, part.start, stop)
                for _, viewed in decoded(records, _Viewed):
                    if viewed.view_ended_ms and not viewed.correction:
                        ended.append(viewed.view_ended_ms)
        self._to_look -= sum(part.stop - part.start for part in ranges)
        self.delays.since(ended, now_ms)

    def report(self, beat: Heartbeat) -> None:
        """Reports to the heartbeat. ``learned_after_s`` is meaningless when a past log is replayed."""
        totals = {name: self.sums.get(name, 0.0) for name in ("steps", "examples", "left_out")}
        for name, total in (totals | {"delta_bytes": self._learned.delta_bytes}).items():
            beat.add(name, total - self._reported.get(name, 0))
            self._reported[name] = total
        beat.gauge("unreadable_deltas", self._learned.unreadable)
        if not self.step:
            return
        beat.gauge("step", self.step)
        if self._behind_ms is not None:
            beat.gauge("learned_after_s", self._behind_ms / 1000)
        beat.replace_gauges(_P95, self.delays.p95(_P95, self._now_ms))
        place = self._steps.place(self.step)
        if place is not None:
            beat.offsets(STEPS, [place + 1])
        for table, steps in self.still.items():
            beat.gauge(f"still_steps.{table}", steps)
        for name, value in self.losses().items():
            beat.gauge(name, value)
        for name, value in self._prequential.figures().items():
            beat.gauge(name, round(value, 4))

    @property
    def step(self) -> int:
        """The newest step of the line's live epoch."""
        return self._learned.step

    @property
    def place(self) -> dict[str, str | int]:
        """Line, epoch and step that were learned last."""
        return {"line": self._learned.line, "epoch": self._learned.epoch, "step": self.step}

    def losses(self) -> dict[str, float]:
        """Mean prequential losses of the newest step, by name."""
        count = self.last.get("examples", 0.0)
        losses = {n: value for n, value in self.last.items() if n.startswith("loss.") and count}
        return {name: round(value / count, 4) for name, value in losses.items()}
