"""Runs the sequencer as a part: reads ``examples`` and appends each step's record before it is learned.

Its last records say where the next step begins. When ``control`` makes another epoch live, it writes the
steps that this epoch learns again, and continues in it: after an epoch's first record none of an earlier
epoch follows. Live, a step is cut once the trainer has published the one before, so that steps follow each
other at its pace. This process also writes the ticks of ``events``.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from experiments.promotion.epoch_model import config_at, features_at
from recsys.clock import machine_ms, machine_ns
from recsys.config.system_config import Config
from recsys.events.hashing import Id
from recsys.events.records import DELTAS, EXAMPLES, STEPS, Step, pack, unpack
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import feature_set
from recsys.log.compression import plain
from recsys.log.protocol import Append, Log, newest_first
from recsys.observability.tracer import open_tracer
from recsys.process.clock_file import clock_of
from recsys.process.fold import PartFold, follow
from recsys.process.log_consumer import UNREADABLE, Consumer
from recsys.process.open_log import open_log
from recsys.process.part_process import Heartbeat, Stop
from training.lines.control import ControlReader, live_epochs
from training.lines.line import MAIN, learning_digest
from training.steps.delta_reader import LearnedSteps
from training.steps.lineage import Lineage, ancestors, last_steps
from training.steps.sequencer import LANE_EXAMPLES, Sequencer, View
from training.steps.step_trace import SequenceTrace
from training.steps.ticker import Ticker

PART: Final = "sequencer"
_READ: Final = 1000
_REST_S: Final = 0.5
_WAITING: Final = 8  # stop reading while so many steps' worth of examples wait
_LOG: Final = logging.getLogger(__name__)


class _Example(msgspec.Struct):
    """The fields of an example that the sequencer decodes. Tombstones have no request."""

    closed_ms: int
    request_id: str = ""
    item_id: Id = ""
    view_ended_ms: int = 0
    correction: bool = False
    measured: bool = False

    @property
    def view(self) -> View | None:
        """The view that caused it; None for corrections and for items that weren't viewed."""
        is_view = self.request_id and self.view_ended_ms and not self.correction
        return (self.request_id, self.item_id) if is_view else None


_UNREADABLE: Final = _Example(0)  # it stays in the step, and its worker reports it


class LinePosition(NamedTuple):
    """The newest step of a line, where the next one begins in ``examples`` by partition (unless no step has
    touched it), and the number of skipped records."""

    step: int
    offsets: dict[int, int]
    unreadable: int


class SequencerLoop(PartFold):
    """Cuts the steps of one line. ``clock`` (milliseconds) is machine time live, event time in replay.
    ``live``: follows the trainer, whose pace is on no record."""

    lane_examples = LANE_EXAMPLES  # of a step for each lane that it fills

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int],
        line: str = MAIN, epoch: int = 0, trace: SequenceTrace | None = None, live: bool = False,
        ticker: Ticker | None = None,
    ) -> None:  # fmt: skip
        """``ticker``: gets a turn with each of this."""
        self._live, self._ticker = live, ticker
        self._trace = trace
        self._log, self._config, self._clock = log, config, clock
        self._line, self._epoch = line, epoch
        self._control, self._features = ControlReader(log), features
        self._decoder = msgspec.msgpack.Decoder(_Example)
        self.unreadable = self._ticks = 0
        self._restore()
        self._reported = self.step

    @property
    def step(self) -> int:
        """The newest step that was cut."""
        return self._sequencer.step

    @property
    def waiting(self) -> int:
        """Number of examples read and not yet in a step."""
        return self._sequencer.waiting

    @property
    def offsets(self) -> dict[int, int]:
        """The next offset of ``examples`` to read, by partition."""
        return dict(self._consumer.offsets)

    def _turn(self) -> int:
        """Reads new examples and cuts the steps that are due."""
        now_ms, moved = self._clock(), 0
        control = self._control
        if control.turn() and control.live_epoch(self._line, self._epoch) != self._epoch:
            self._restore()
        sequencer = self._sequencer
        if self.waiting < _WAITING * self._config.step.examples:
            for partition, record in self._consumer.poll(_READ):
                example = self._decode(record.value)
                place = partition, record.offset
                learned = not example.measured
                sequencer.arrived(*place, example.closed_ms, now_ms, example.view, learned)
                if self._trace:
                    self._trace.arrived(*place, example.request_id)
                moved += 1
        for delta in self._learned.read() if self._live else ():
            self._published = delta.step
        steps = []
        while (step := sequencer.cut(now_ms, self._trainer_waits)) is not None:
            steps.append(step)
        self._append(steps)
        if self._trace:
            self._trace.cut(steps)
        self._ticks += self._ticker.turn() if self._ticker else 0
        return moved + len(steps)

    def report(self, beat: Heartbeat, moved: int) -> None:
        beat.add("steps", self.step - self._reported)
        beat.add("ticks", self._ticks)
        self._reported, self._ticks = self.step, 0
        beat.gauge("step", self.step)
        beat.gauge("waiting", self.waiting)
        beat.gauge("unreadable", self.unreadable)
        beat.offsets(EXAMPLES, [offset for _, offset in sorted(self.offsets.items())])

    def wait(self) -> None:
        due_ms = self._sequencer.due_ms(self._clock(), self._trainer_waits)
        if due_ms is None:
            self._log.wait(EXAMPLES, _REST_S)
        elif self._trainer_waits:
            time.sleep(min(due_ms / 1000, _REST_S))  # more examples hardly ever make it due earlier
        else:
            self._log.wait(DELTAS, min(due_ms / 1000, _REST_S))

    @property
    def _trainer_waits(self) -> bool:
        """Whether the newest step is learned and published."""
        return self._live and self._published >= self._sequencer.step

    def _append(self, steps: Sequence[Step]) -> None:
        if steps:
            key, without = self._line.encode(), self._control.lifecycle.excluded
            if without:
                steps = [replace(step, without=without) for step in steps]
            self._log.append(STEPS, [Append(0, key, pack(step)) for step in steps])

    def _begin_epoch(self, newest: int, offsets: dict[int, int]) -> int:
        """Writes the missing records of steps that the live epoch learns again from its parent; returns the
        newest step, and updates ``offsets`` to where the next one begins. Resumes after a kill."""
        live = self._control.lifecycle.live
        if live is None or (live.line, live.epoch) != (self._line, self._epoch):
            return newest
        newest = max(newest, live.base_step)
        lives = [life for life in self._control.lifecycle.lives if life.epoch <= live.parent_epoch]
        lineage, again = Lineage(self._log, self._line, lives), list[Step]()
        while (step := lineage.record(newest + 1)) is not None:
            newest += 1
            again.append(replace(step, epoch=self._epoch, config=self._digest))
            offsets |= {part.partition: part.stop for part in step.ranges}
        self._append(again)
        return newest

    def _decode(self, value: bytes) -> _Example:
        try:
            return self._decoder.decode(plain(value))
        except UNREADABLE:
            self.unreadable += 1
            return _UNREADABLE

    def _restore(self) -> None:
        """Finds its position from the records that the log accepted."""
        partitions = self._log.partitions(EXAMPLES)
        self._control.turn()
        lifecycle = self._control.lifecycle
        self._epoch = self._control.live_epoch(self._line, self._epoch)
        config = config_at(self._config, lifecycle, self._line, self._epoch)
        features = features_at(self._features, lifecycle, self._line, self._epoch)
        self._digest = learning_digest(config, features)
        lived = ancestors(lifecycle.lives, self._epoch)
        position = last_position(self._log, self._line, self._epoch, partitions, lived)
        offsets = position.offsets
        if position.unreadable:
            _LOG.warning("%d records of %s can't be read: see dead_letters", position.unreadable, STEPS)
        step = self._begin_epoch(position.step, offsets)
        for partition in range(partitions):
            offsets.setdefault(partition, self._log.begin(EXAMPLES, partition))
        self._sequencer = Sequencer(
            self._config.step, line=self._line, epoch=self._epoch, digest=self._digest, step=step,
            offsets=offsets, live=self._live, lane_examples=self.lane_examples,
        )  # fmt: skip
        self._consumer = Consumer(self._log, EXAMPLES, list(range(partitions)), dict(offsets))
        if self._live:
            self._learned = LearnedSteps(self._log, self._control, self._line, self._epoch)
            self._published = step  # if its delta is still to come, one step is cut early
        if self._trace:
            self._trace.forget()


def last_position(
    log: Log, line: str, epoch: int, partitions: int, lived: set[int] | None = None
) -> LinePosition:
    """Reads a line's position backwards from the end of ``steps``. Skips unreadable records: if the newest is
    one, its step is cut again. An epoch begins with steps of its parent, which supply the partitions that its
    own steps haven't touched. ``lived``: the epochs that count, by default all that were live before."""
    if lived is None:
        lived = {epoch} | ({e for e in live_epochs(log, line) if e < epoch} if epoch else set())
    newest, offsets, unreadable = 0, dict[int, int](), 0
    for record in newest_first(log, STEPS, 0):
        if len(offsets) >= partitions:
            break
        try:
            step = unpack(record.value, Step)
        except UNREADABLE:
            unreadable += 1
            continue
        if step.line == line and step.epoch in lived:
            newest = max(newest, step.step if step.epoch == epoch else 0)
            for part in step.ranges:
                offsets.setdefault(part.partition, part.stop)
    return LinePosition(newest, offsets, unreadable)


class EpochEnd:
    """Detects when a worker has learned all of an epoch and may continue in the next one. After an epoch's
    first record none of an earlier one follows, so all workers see the same last step."""

    def __init__(self, log: Log, line: str, epoch: int) -> None:
        self._log, self._line, self._epoch = log, line, epoch
        self._control = ControlReader(log)
        self._last: int | None = None  # step of the epoch, once it is known

    def left_for(self) -> int | None:
        """The epoch that is live now, whatever was learned of this one; None while this one is live."""
        self._control.turn()
        live = self._control.live_epoch(self._line, self._epoch)
        return live if live > self._epoch else None

    def abandoned_for(self) -> int | None:
        """The epoch that is live now, where it doesn't continue this one: the line was rolled back, and the
        remaining steps are useless. None otherwise."""
        epoch, live = self.left_for(), self._control.lifecycle.live
        return None if live is None or live.parent_epoch == self._epoch else epoch

    def following(self, learned: int) -> int | None:
        """The next epoch if ``learned`` is the last step of this one, else None. Call it when idle."""
        live = self.left_for()
        if live is None:
            return None
        newest = [(step.line, step.epoch) for step in last_steps(self._log)[-1:]]
        if newest != [(self._line, live)]:  # the sequencer may still write records of this epoch
            return None
        if self._last is None:
            partitions = self._log.partitions(EXAMPLES)
            self._last = last_position(self._log, self._line, self._epoch, partitions).step
        return live if learned >= self._last else None


@contextmanager
def opened(config: Config) -> Iterator[SequencerLoop]:
    """The part's fold, which also ticks idle partitions of ``events``."""
    with closing(open_log(config)) as log:
        tracer = open_tracer(config, PART)
        trace = SequenceTrace(tracer, machine_ns) if tracer else None
        ticker = Ticker(log, clock_of(config))
        loop = SequencerLoop(
            log, config, feature_set(config), machine_ms, trace=trace, live=True, ticker=ticker
        )
        loop.tracer = tracer
        yield loop
        if tracer:
            tracer.close()


def run(config: Config, stop: Stop) -> None:
    """Cuts steps until asked to stop."""
    with opened(config) as loop:
        follow(loop, stop, _LOG)
