"""Writes dead letters for unreadable records of ``items``, item counters, ``steps`` and ``control``, whose
readers skip them, and for steps whose gradients a shard rejected (by ``deltas``).

The letter of such a step names the offsets of its examples. The position is saved now and then; records that
are judged again after a kill get no second letter.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from parameter_server.shard.gradient_rejections import describe_rejections
from recsys.clock import is_due, timer_of
from recsys.events.control_records import Control
from recsys.events.event_types import Item, decode
from recsys.events.records import (
    CONTROL,
    DEAD_LETTERS,
    DELTAS,
    EXAMPLES,
    ITEM_COUNTS,
    ITEM_STATE,
    ITEMS,
    STEPS,
    ItemState,
    Step,
    unpack,
)
from recsys.log.protocol import Log, LogLost, Record
from recsys.process.fold import Fold
from recsys.process.log_consumer import UNREADABLE, Consumer, DeadLetters
from recsys.process.part_snapshot import PartState
from training.steps.delta_reader import DeltaMetrics
from training.steps.step_reader import StepReader

_READ: Final = 100  # records of each topic in a turn: item states are large
_READ_DELTAS: Final = 16  # deltas are large too
_SAVE_EVERY_MS: Final = 30_000
_LOG: Final = logging.getLogger(__name__)


class Inspector(Fold):
    """Judges the records of its topics; ``clock`` (milliseconds) decides what retention drops, and
    when to save."""

    def __init__(self, log: Log, state: PartState, clock: Callable[[], int]) -> None:
        """Raises LogLost if ``state`` is of another log."""
        self._log, self._state, self._clock = log, state, clock
        self._timer_ms = timer_of(clock)
        self._letters = DeadLetters(log, tuple(_JUDGES))
        self._saved: dict[str, dict[int, int]] = {}
        self._steps: dict[tuple[str, int], StepReader] = {}
        self.unreadable = 0
        self.set_aside = 0  # deltas with rejected gradients; their step has one letter
        self._restore()

    @property
    def offsets(self) -> dict[str, dict[int, int]]:
        """The next offsets to read, by topic and partition."""
        return {topic: dict(consumer.offsets) for topic, consumer in self._consumers.items()}

    def save(self) -> None:
        """Saves the offsets up to which records are judged."""
        if not self.needs_restore and self.offsets != self._saved:
            self._saved = self.offsets
            self._state.save(self._log.id, self._saved, b"")
        self._due_ms = self._timer_ms() + _SAVE_EVERY_MS

    def _turn(self) -> int:
        moved = 0
        for topic in _JUDGES:
            for partition, record in self._poll(topic):
                moved += 1
                reason = _reason(topic, record)
                if reason:
                    self.unreadable += 1
                    self._letters.put(topic, partition, record, reason)
        for _, record in self._poll(DELTAS, _READ_DELTAS):
            moved += 1
            self._judge_delta(record)
        self._letters.send()
        if is_due(self._timer_ms(), self._due_ms, _SAVE_EVERY_MS):
            # Else retention waits for the next append.
            dropped = sum(self._log.retain(t, self._clock()) for t in (EXAMPLES, DEAD_LETTERS))
            self.save()
            if dropped:  # maybe not all
                self._due_ms = self._timer_ms()
        return moved

    def _judge_delta(self, record: Record) -> None:
        """Writes one letter for a step with rejected gradients, whichever shard reports it first."""
        try:
            delta = unpack(record.value, DeltaMetrics)
        except UNREADABLE:
            return  # every replica counts it and recovers from a snapshot
        rejected = describe_rejections(delta.metrics, delta.part)
        if not rejected:
            return
        line = delta.line, delta.epoch
        reader = self._steps.setdefault(line, StepReader(self._log, *line))
        try:
            step, place = reader.record(delta.step), reader.place(delta.step)
        except LogLost:  # trimmed up to there since the reader's last rejection: another begins anew
            reader = self._steps[line] = StepReader(self._log, *line)
            step, place = reader.record(delta.step), reader.place(delta.step)
        if step is None or place is None:
            _LOG.error("step %d of %s/%d: %s, and the log has no record of it", delta.step, *line, rejected)
            return
        ranges = ", ".join(f"{r.partition}: {r.start} to {r.stop - 1}" for r in step.ranges)
        reason = (
            f"step {step.step} of {step.line}/{step.epoch}: {rejected}: not finite, or too large. Set aside "
            f"are its {step.examples} examples at the offsets {ranges} of {EXAMPLES}, cut into the "
            f"first {step.filled or step.lanes} of {step.lanes} lanes"
        )
        self.set_aside += 1
        self._letters.put(STEPS, 0, self._log.read(STEPS, 0, place, 1)[0], reason, step.time_ms)

    def _poll(self, topic: str, most: int = _READ) -> list[tuple[int, Record]]:
        """The next records; skips those that are gone. Raises LogLost if the log never had them."""
        consumer = self._consumers[topic]
        try:
            return consumer.poll(most)
        except LogLost:
            begins = {p: self._log.begin(topic, p) for p in consumer.offsets}
            if all(begins[p] <= offset for p, offset in consumer.offsets.items()):
                raise
            for partition, begin in begins.items():
                consumer.offsets[partition] = max(begin, consumer.offsets[partition])
            return []

    def _restore(self) -> None:
        saved = self._state.load(self._log.id)
        self._saved = {} if saved is None else saved.offsets
        self._letters.forget()
        self._consumers = dict[str, Consumer]()
        for topic in (*_JUDGES, DELTAS):
            partitions, saved_at = range(self._log.partitions(topic)), self._saved.get(topic)
            self._consumers[topic] = Consumer(self._log, topic, partitions, saved_at)
        self._due_ms = self._timer_ms() + _SAVE_EVERY_MS


def _item(value: bytes) -> None:
    event = decode(value)
    if not isinstance(event, Item):
        raise msgspec.ValidationError(f"it is a {type(event).__name__.lower()}, expected an item")


_control: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Control)
_JUDGES: Final[dict[str, Callable[[bytes], object]]] = {
    ITEMS: _item,
    ITEM_STATE: msgspec.msgpack.Decoder(ItemState).decode,
    ITEM_COUNTS: msgspec.msgpack.Decoder(ItemState).decode,
    STEPS: msgspec.msgpack.Decoder(Step).decode,
    CONTROL: _control.decode,
}


def _reason(topic: str, record: Record) -> str:
    """The reason why a record is unreadable; empty if it is readable."""
    try:
        _JUDGES[topic](record.value)
    except UNREADABLE as error:
        return f"not a record of {topic}: {error}"
    return ""
