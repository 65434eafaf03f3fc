"""From a step record to its examples: which they are is in the record, so every worker reads the same.

Examples are ordered by (partition, offset) and cut into lanes by their number alone. A worker decodes only
its own lanes. What can't be learned from (not an example, of another feature set, not finite) is left out,
by a rule that looks at nothing but its bytes: whoever learns the step again leaves the same out. The place of
one whose user was forgotten stays, empty, so that the others keep their lanes.

So it is with a record that can't be read: where its step is missing between two others of its line, it is an
empty step for everyone. Its examples aren't learned, and the steps after it are.
"""

from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from recsys.consumer import UNREADABLE
from recsys.events import FeatureBlock
from recsys.features import FeatureSet
from recsys.hashing import Id
from recsys.log import Log, LogLost, Record
from recsys.records import EXAMPLES, STEPS, Example, Forget, Step, unpack, without_example
from training.sequencer import lanes_of

_READ_AHEAD = 64  # step records


class StepReader:
    """The step records of one (line, epoch), found by their number. ``unreadable``: records passed over."""

    def __init__(self, log: Log, line: str, epoch: int) -> None:
        self._log, self._line, self._epoch = log, line, epoch
        self._read: dict[int, tuple[int, Step]] = {}  # a few with their offsets, the newest read
        self._offset = 0
        self._newest: int | None = None  # own step read last; None where an earlier one isn't known
        self._passed: list[int] = []  # offsets that couldn't be read since then
        self._lost, self._lost_at = range(0), list[int]()
        self._judged = 0
        self.unreadable = 0

    @property
    def offset(self) -> int:
        """The next offset of ``steps`` that would be read."""
        return self._offset

    def record(self, step: int) -> Step | None:
        """The record of a step, an empty one where it can't be read; None where it isn't there yet. Never
        waits."""
        found = self._find(step)
        return found[1] if found else None

    def place(self, step: int) -> int | None:
        """The offset of a step's record; None where it isn't there yet."""
        found = self._find(step)
        return found[0] if found else None

    def check_to_come(self, step: int) -> None:
        """Raises LogLost where a step can't come any more: more steps are missing than records can't be read,
        so that nobody can say which of them were there."""
        if step in self._lost:
            raise LogLost(
                f"{STEPS}/0 has no step {step} of line {self._line}, epoch {self._epoch}, but later ones: "
                f"{len(self._lost)} steps are missing where {len(self._lost_at)} records can't be read, at "
                f"offsets {self._lost_at[:5]}. Bring the topic back as it was, start the shards from a "
                f"snapshot of step {self._lost.stop - 1} or later, or begin anew in another state folder"
            )

    def _find(self, step: int) -> tuple[int, Step] | None:
        if step not in self._read:
            if self._read and step < max(self._read):
                self._read.clear()  # a line that went back
            if not self._read:
                self._seek(self._start(step))
            self._advance(step)
        return self._read.get(step)

    def _start(self, step: int) -> int:
        """Where to look for a step first. A line's records are in order, and mostly alone in the topic, so
        that of step s stands at s - 1 or a little later; where that doesn't show, all are read."""
        begin, end = self._log.begin(STEPS, 0), self._log.end(STEPS, 0)
        near = max(begin, min(step - 1, end) - _READ_AHEAD)
        for record in self._log.read(STEPS, 0, near, _READ_AHEAD):
            with suppress(*UNREADABLE):
                own = self._own(record)
                if own is not None:  # the first of them
                    return near if own.step < step else begin
        return begin

    def _seek(self, offset: int) -> None:
        self._offset, self._passed, self._lost = offset, [], range(0)
        self._newest = 0 if offset == 0 else None

    def _advance(self, step: int) -> None:
        while step not in self._read:
            records = self._log.read(STEPS, 0, self._offset, _READ_AHEAD)
            if not records:
                return
            self._read = self._take(records) or self._read
            self._offset = records[-1].offset + 1

    def _take(self, records: Sequence[Record]) -> dict[int, tuple[int, Step]]:
        """The own steps among some records, with those whose records can't be read."""
        found: dict[int, tuple[int, Step]] = {}
        for record in records:
            try:
                step = self._own(record)
            except UNREADABLE:
                self._passed.append(record.offset)
                self.unreadable += record.offset >= self._judged
                continue
            if step is not None:
                found |= self._missing_before(step)
                found[step.step] = (record.offset, step)
                self._newest, self._passed = max(step.step, self._newest or 0), []
        self._judged = max(self._judged, records[-1].offset + 1)
        return found

    def _missing_before(self, step: Step) -> dict[int, tuple[int, Step]]:
        """The steps between the own one read last and this one, where as many records can't be read. They
        are those of one log for whoever reads it, wherever he begins."""
        if self._newest is None:
            return {}
        missing = range(self._newest + 1, step.step)
        if len(missing) > len(self._passed):
            if self._passed:
                self._lost, self._lost_at = missing, self._passed
            return {}
        return {
            number: (offset, replace(step, step=number, ranges=[], examples=0))
            for number, offset in zip(missing, self._passed, strict=False)
        }

    def _own(self, record: Record) -> Step | None:
        step = unpack(record.value, Step)
        return step if (step.line, step.epoch) == (self._line, self._epoch) else None


@dataclass(frozen=True)
class LeftOut:
    """A record of ``examples`` that isn't learned from, and why."""

    partition: int
    record: Record
    reason: str


@dataclass
class LaneExamples:
    """What one lane of a step learns from, what it doesn't, and the users whose rows leave with it."""

    examples: list[Example] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    forget: list[Id] = field(default_factory=list)


def read_lanes(
    log: Log, step: Step, own: Container[int], check: "ExampleCheck"
) -> dict[int, LaneExamples]:
    """The own lanes of a step, by lane. Raises LogLost where the log no longer has its examples."""
    records = records_of(log, step)
    lanes = {}
    for lane, places in enumerate(lanes_of(len(records), step.lanes)):
        if lane in own:
            lanes[lane] = _read_lane([records[i] for i in places], check)
    return lanes


def records_of(log: Log, step: Step) -> list[tuple[int, Record]]:
    """All records of a step's ranges as (partition, record), in the order that lanes are cut from."""
    found: list[tuple[int, Record]] = []
    for part in sorted(step.ranges, key=lambda part: part.partition):
        offset = part.start
        while offset < part.stop:
            records = log.read(EXAMPLES, part.partition, offset, part.stop - offset)
            inside = [record for record in records if record.offset < part.stop]
            found.extend((part.partition, record) for record in inside)
            if not inside or len(inside) < len(records):
                break
            offset = inside[-1].offset + 1
    if len(found) != step.examples:
        raise LogLost(
            f"step {step.step} of {step.line} was cut from {step.examples} examples, and the log has "
            f"{len(found)} of them in {step.ranges}: it lost some. Start again from a snapshot of a later "
            "step, and keep examples for longer than the trainer may be away (log.retention_hours)"
        )
    return found


def _read_lane(records: Sequence[tuple[int, Record]], check: "ExampleCheck") -> LaneExamples:
    lane, found = LaneExamples(), list[tuple[int, Record, Example]]()
    for partition, record in records:
        try:
            example = unpack(record.value, Example)
            reason = check.reason(example)
        except UNREADABLE as error:
            reason = f"not an example: {error}"
            empty = without_example(record.value)
            if isinstance(empty, Forget):
                lane.forget.append(empty.user_id)
            if empty is not None:
                continue
        if reason:
            lane.left_out.append(LeftOut(partition, record, reason))
        else:
            found.append((partition, record, example))
    lane.examples = [example for _, _, example in found]
    if not check.all_finite(lane.examples):  # rare, so that each is looked at only now
        lane.examples = []
        for partition, record, example in found:
            if check.all_finite([example]):
                lane.examples.append(example)
            else:
                reason = "dense or outcomes has a number that isn't finite"
                lane.left_out.append(LeftOut(partition, record, reason))
    return lane


class ExampleCheck:
    """Whether an example fits a model: its feature set, the sizes of its arrays, finite numbers."""

    def __init__(self, features: FeatureSet, dense_width: int) -> None:
        self.features = features
        self._digest = features.digest
        length, outcomes = features.history_length, features.outcomes
        self._bytes = {
            "user_keys": 8 * features.user_columns,
            "item_keys": 8 * features.item_columns,
            "history": 8 * length * features.history_keys,
            "outcomes": 4 * length * outcomes,
            "dense": 4 * dense_width,
        }
        self._sizes = tuple(self._bytes.values())
        self._labels = len(features.schema.labels)

    def reason(self, example: Example) -> str:
        """Why an example can't be learned from; empty where it can, if its arrays are finite."""
        block = example.features
        if block is None:
            return "it has no features: they must be filled in first"
        if block.feature_set != self._digest:
            return f"feature set is {block.feature_set}, expected {self._digest}"
        return self._wrong_size(example, block) or self._wrong_number(example)

    def all_finite(self, examples: Sequence[Example]) -> bool:
        """Whether dense features and outcomes are finite in all of some examples of the right sizes."""
        blocks = [example.features for example in examples if example.features is not None]
        joined = b"".join([block.dense + block.outcomes for block in blocks])
        return bool(np.isfinite(np.frombuffer(joined, np.float32)).all())

    def _wrong_size(self, example: Example, block: FeatureBlock) -> str:
        sizes = (
            len(block.user_keys),
            len(block.item_keys),
            len(block.history),
            len(block.outcomes),
            len(block.dense),
        )
        if sizes != self._sizes:
            return f"arrays have {sizes} bytes, expected {self._bytes}"
        previous = len(example.previous) if example.correction else self._labels
        if len(example.labels) != self._labels or previous != self._labels:
            return f"it has {len(example.labels)} labels, expected {self._labels}"
        return ""

    def _wrong_number(self, example: Example) -> str:
        if not all([0.0 <= label <= 1.0 for label in example.labels]):
            return f"labels are {example.labels}, expected 0 to 1"
        if not 0 <= example.watch_ms < 1 << 53:
            return f"watch_ms is {example.watch_ms}, expected milliseconds, not negative"
        return ""
