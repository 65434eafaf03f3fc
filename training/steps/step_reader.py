"""Reads step records and their examples. The record names the examples, so every worker reads the same.

Examples are ordered by (partition, offset) and cut into lanes by number alone. Unusable records are left out
by a rule on their bytes alone, so learning a step again leaves out the same ones. Tombstones keep the places
of deleted users' examples. An unreadable step record that is missing between two others of its line is an
empty step.
"""

from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from msgspec.structs import replace

from recsys.app.logged_sets import BlockReader
from recsys.events.event_types import FeatureBlock, Stamp
from recsys.events.hashing import Id
from recsys.events.records import (
    EXAMPLES,
    STEPS,
    Forget,
    Range,
    Step,
    TrainingExample,
    non_example,
    unpack,
    unpack_all,
)
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost, Record, read_range
from recsys.process.log_consumer import UNREADABLE
from training.steps.sequencer import lanes_of

_READ_AHEAD = 64  # step records
_MAX_WATCH_MS = 1 << 53
_LEAST_ARRIVED = 1e-6  # share of a label


class StepReader:
    """Reads the step records of one (line, epoch) by number. ``unreadable``: number of skipped records."""

    def __init__(self, log: Log, line: str, epoch: int) -> None:
        self._log, self._line, self._epoch = log, line, epoch
        self._read: dict[int, tuple[int, Step]] = {}  # the latest read, with their offsets
        self._offset = 0
        self._sought = -1  # step sought last; none of its own steps may have been read
        self._newest: int | None = None  # own step read last; None if an earlier one is unknown
        self._passed: list[int] = []  # offsets of unreadable records since then
        self._lost, self._lost_at = range(0), list[int]()
        self._judged = 0
        self.unreadable = 0

    def record(self, step: int) -> Step | None:
        """The record of a step, an empty one if it is unreadable; None if it isn't written yet."""
        entry = self._find(step)
        return entry[1] if entry else None

    def place(self, step: int) -> int | None:
        """The offset of a step's record; None if it isn't written yet."""
        entry = self._find(step)
        return entry[0] if entry else None

    def check_to_come(self, step: int) -> None:
        """Raises LogLost if a step can't come any more: more are missing than records are unreadable."""
        if step in self._lost:
            raise LogLost(
                f"{STEPS}/0 has no step {step} of line {self._line}, epoch {self._epoch}, but later ones: "
                f"{len(self._lost)} steps are missing where {len(self._lost_at)} records can't be read, at "
                f"offsets {self._lost_at[:5]}. Bring the topic back as it was, start the shards from a "
                f"snapshot of step {self._lost.stop - 1} or later, or begin anew in another state folder"
            )

    def _find(self, step: int) -> tuple[int, Step] | None:
        if step not in self._read:
            # At first, and where the line went back.
            if self._sought < 0 or step < max(self._read, default=self._sought):
                self._read.clear()
                self._offset, self._passed, self._lost = self._start(step), [], range(0)
                self._newest = 0 if self._offset == 0 else None
            self._sought = step
            self._advance(step)
        return self._read.get(step)

    def _start(self, step: int) -> int:
        """The offset at which the search for a step begins. A line's records are in order, and mostly alone
        in the topic, so that of step s is at s - 1 or a little later; otherwise all are read."""
        begin, end = self._log.begin(STEPS, 0), self._log.end(STEPS, 0)
        near = max(begin, min(step - 1, end) - _READ_AHEAD)
        for record in self._log.read(STEPS, 0, near, _READ_AHEAD):
            with suppress(*UNREADABLE):
                own = self._own(record)
                if own is not None:  # the first of them
                    return near if own.step < step else begin
        return begin

    def _advance(self, step: int) -> None:
        while step not in self._read:
            records = self._log.read(STEPS, 0, self._offset, _READ_AHEAD)
            if not records:
                return
            self._read = self._take(records) or self._read
            self._offset = records[-1].offset + 1

    def _take(self, records: Sequence[Record]) -> dict[int, tuple[int, Step]]:
        """The own steps among some records, including those whose records are unreadable."""
        steps: dict[int, tuple[int, Step]] = {}
        for record in records:
            try:
                step = self._own(record)
            except UNREADABLE:
                self._passed.append(record.offset)
                self.unreadable += record.offset >= self._judged
                continue
            if step is not None:
                steps |= self._missing_before(step)
                steps[step.step] = (record.offset, step)
                self._newest, self._passed = max(step.step, self._newest or 0), []
        self._judged = max(self._judged, records[-1].offset + 1)
        return steps

    def _missing_before(self, step: Step) -> dict[int, tuple[int, Step]]:
        """Empty steps between the own one read last and this one, if as many records are unreadable. They are
        the same for every reader of a log, wherever it begins."""
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
class SkippedRecord:
    """A record of ``examples`` that isn't learned, and the reason."""

    partition: int
    record: Record
    reason: str


@dataclass
class LaneExamples:
    """Examples of one lane of a step, the records left out, and the users whose rows it removes."""

    examples: list[TrainingExample] = field(default_factory=list)
    left_out: list[SkippedRecord] = field(default_factory=list)
    forget: list[Id] = field(default_factory=list)
    excluded: int = 0  # examples served by a line that was rolled back


def read_lanes(log: Log, step: Step, own: Container[int], check: "ExampleCheck") -> dict[int, LaneExamples]:
    """The own lanes of a step, by lane. Without holes in the offsets, only these are read. Raises LogLost if
    the log no longer has its examples."""
    places = lanes_of(step.examples, step.lanes, step.filled)
    own_places = [(n, p) for n, p in enumerate(places) if n in own]
    if sum(part.stop - part.start for part in step.ranges) == step.examples:
        lanes = {n: _read(log, step, _cut(step.ranges, p), len(p)) for n, p in own_places}
    else:
        records = records_of(log, step)
        lanes = {n: records[p.start : p.stop] for n, p in own_places}
    return {n: _read_lane(records, check, step.without) for n, records in lanes.items()}


def records_of(log: Log, step: Step) -> list[tuple[int, Record]]:
    """All records of a step's ranges as (partition, record), in the order in which lanes are cut."""
    return _read(log, step, step.ranges, step.examples)


def _cut(ranges: Sequence[Range], places: range) -> list[Range]:
    """The ranges of some indices among all offsets of a step's ranges."""
    cut, before = [], 0
    for part in sorted(ranges, key=lambda part: part.partition):
        start = part.start + max(0, places.start - before)
        stop = min(part.stop, part.start + places.stop - before)
        if start < stop:
            cut.append(Range(part.partition, start, stop))
        before += part.stop - part.start
    return cut


def _read(log: Log, step: Step, ranges: Sequence[Range], examples: int) -> list[tuple[int, Record]]:
    placed = [
        (part.partition, record)
        for part in sorted(ranges, key=lambda part: part.partition)
        for record in read_range(log, EXAMPLES, part.partition, part.start, part.stop, part.stop - part.start)
    ]
    if len(placed) != examples:
        raise LogLost(
            f"step {step.step} of {step.line} was cut from {step.examples} examples in {step.ranges}, and of "
            f"{examples} in {list(ranges)} the log has {len(placed)}: it lost some. Start again from a "
            "snapshot of a later step, and keep examples for longer than the trainer may be away "
            "(log.retention_hours)"
        )
    return placed


def _read_lane(
    records: Sequence[tuple[int, Record]], check: "ExampleCheck", without: Sequence[str]
) -> LaneExamples:
    lane = _read_all(records, check)
    if without:
        allowed = [example for example in lane.examples if example.served_by not in without]
        lane.excluded, lane.examples = len(lane.examples) - len(allowed), allowed
    return lane


def _read_all(records: Sequence[tuple[int, Record]], check: "ExampleCheck") -> LaneExamples:
    """Decodes a lane at once; record by record if one is invalid, which is rare."""
    with suppress(*UNREADABLE):
        read = unpack_all([record.value for _, record in records], check.kind)
        examples = check.read([example for example in read if not example.measured])
        if check.all_fit(examples):
            return LaneExamples(list(examples))
    lane = LaneExamples()
    for partition, record in records:
        try:
            (example,) = check.read([unpack(record.value, check.kind)])
            if example.measured:
                continue
            reason = check.reason(example)
        except UNREADABLE as error:
            reason = f"not an example: {error}"
            tombstone = non_example(record.value)
            if isinstance(tombstone, Forget):
                lane.forget.append(tombstone.user_id)
            if tombstone is not None:
                continue
        if reason:
            lane.left_out.append(SkippedRecord(partition, record, reason))
        else:
            lane.examples.append(example)
    return lane


class ServedExample(TrainingExample, kw_only=True):
    """An example with who saw it where, and the answer that served it."""

    user_id: Id = ""
    surface: str = "feed"
    predicted: bytes = b""
    stamp: Stamp | None = None


class ExampleCheck:
    """Checks whether examples fit a model: feature set, array sizes, finite numbers."""

    def __init__(
        self, features: FeatureSet, dense_width: int,
        kind: type[TrainingExample] = TrainingExample, log: Log | None = None,
    ) -> None:  # fmt: skip
        """``kind``: the type that examples are decoded as. ``log``: tells of other sets, whose examples the
        model can read where they have all of its features."""
        self._blocks = BlockReader(log, features)
        self.features, self.kind = features, kind
        self._digest = features.digest
        length, outcomes = features.history_length, features.outcomes
        self.widths = {  # bytes of an example in each column of features
            "user_keys": 8 * features.user_columns,
            "item_keys": 8 * features.item_columns,
            "history": 8 * length * features.history_keys,
            "outcomes": 4 * length * outcomes,
            "dense": 4 * dense_width,
        }
        self._sizes = tuple(self.widths.values())
        self._labels = len(features.schema.labels)

    def read(self, examples: Sequence[TrainingExample]) -> Sequence[TrainingExample]:
        """Examples with what the model reads of their features."""
        blocks = [example.features for example in examples]
        if all([block is None or block.feature_set == self._digest for block in blocks]):
            return examples
        return [
            example if block is None else self._narrowed(example, block)
            for example, block in zip(examples, blocks, strict=True)
        ]

    def _narrowed(self, example: TrainingExample, block: FeatureBlock) -> TrainingExample:
        read = self._blocks.read(block)
        choice = self._blocks.choice(block.feature_set, example.choice)
        return replace(example, features=read, choice=choice)

    def reason(self, example: TrainingExample) -> str:
        """The reason why an example can't be learned from; empty if it can."""
        block = example.features
        if block is None:
            return "it has no features: they must be filled in first"
        if block.feature_set != self._digest:
            return f"feature set is {block.feature_set}, expected {self._digest}"
        if _sizes(block) != self._sizes:
            return f"arrays have {_sizes(block)} bytes, expected {self.widths}"
        previous = len(example.previous) if example.correction else self._labels
        if len(example.labels) != self._labels or previous != self._labels:
            return f"it has {len(example.labels)} labels, expected {self._labels}"
        if not all([0.0 <= label <= 1.0 for label in example.labels]):
            return f"labels are {example.labels}, expected 0 to 1"
        if not 0 <= example.watch_ms < _MAX_WATCH_MS:
            return f"watch_ms is {example.watch_ms}, expected milliseconds, not negative"
        if not _finite([block]):
            return "dense or outcomes has a number that isn't finite"
        return label_fault(example, self._labels)

    def all_fit(self, examples: Sequence[TrainingExample]) -> bool:
        """Whether ``reason`` is empty for all examples, computed for all at once."""
        sizes = {
            (block.feature_set, *_sizes(block)) if block is not None else None
            for block in [example.features for example in examples]
        }
        lengths = {len(example.labels) for example in examples}
        lengths |= {len(example.previous) for example in examples if example.correction}
        if not sizes <= {(self._digest, *self._sizes)} or not lengths <= {self._labels}:
            return False
        labels = np.array([example.labels for example in examples], np.float64)
        watch_ms = [example.watch_ms for example in examples]
        return (
            bool(((labels >= 0.0) & (labels <= 1.0)).all())
            and min(watch_ms, default=0) >= 0
            and max(watch_ms, default=0) < _MAX_WATCH_MS
            and not any([label_fault(e, self._labels) for e in examples if is_open(e)])
            and _finite([e.features for e in examples if e.features])
        )


def _sizes(block: FeatureBlock) -> tuple[int, int, int, int, int]:
    return (
        len(block.user_keys),
        len(block.item_keys),
        len(block.history),
        len(block.outcomes),
        len(block.dense),
    )


def _finite(blocks: Sequence[FeatureBlock]) -> bool:
    """Whether dense features and outcomes, of the right sizes, are finite in all blocks."""
    joined = b"".join([block.dense for block in blocks] + [block.outcomes for block in blocks])
    return bool(np.isfinite(np.frombuffer(joined, np.float32)).all())


def is_open(example: TrainingExample) -> bool:
    """Whether its labels aren't final, or it represents other examples."""
    return bool(example.arrived) or example.sampled_out or example.sampling_rate != 1.0


def label_fault(example: TrainingExample, labels: int) -> str:
    """The reason why an example with so many labels is invalid; empty if it is valid."""
    if example.sampled_out and len(example.previous) != labels:
        return f"it has {len(example.previous)} previous labels, expected {labels}"
    if not 0.0 < example.sampling_rate <= 1.0:
        return f"kept is {example.sampling_rate}, expected above 0, at most 1"
    least = 0.0 if example.correction or example.sampled_out else _LEAST_ARRIVED
    are_shares = all([least <= share <= 1 for share in example.arrived])
    if len(example.arrived) not in (0, labels) or not are_shares:
        return f"arrived is {example.arrived}, expected {labels} shares of {least} to 1"
    return ""
