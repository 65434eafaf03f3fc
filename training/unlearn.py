"""Unlearns a user: history without them, from before their first example on, becomes the line's next epoch.

The steps stay what they were: the same records, the same offsets, the same lanes. The user's examples are
empty places in them. So the weights that come out are, bit for bit, those of a line that never saw the user's
examples. What others' examples carry of the user is not undone: item counters, as they were served.

The system must stand still meanwhile: nobody else appends to the log or writes snapshots.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from parameter_server import snapshots
from parameter_server.dense import Vector
from parameter_server.durable import load_shard
from parameter_server.parameter_client import LocalClient, fresh_shards
from parameter_server.shard import Shard, ShardSpec, digest_of_shards
from recsys.blueprint import build_model
from recsys.config import Config
from recsys.consumer import UNREADABLE
from recsys.features import FeatureSet
from recsys.hashing import Id, partition_of
from recsys.log import Append, Log, Record
from recsys.records import DELTAS, EXAMPLES, STEPS, Step, pack, unpack, without_example
from training.director import point
from training.erasure import changes_records, erase_records, left_of
from training.learner import Learner
from training.line import MAIN, spec_of
from training.live import live_epoch
from training.step_reader import StepReader
from training.worker import Worker

_READ: Final = 1_000
_APPEND: Final = 500  # step records at once


class CantUnlearn(ValueError):
    """History can't be repeated from before the user's first example; says what still can be done."""


class Unlearned(NamedTuple):
    """What came out. ``since``: the step whose snapshot it began from. ``other_config``: how many steps had
    been learned with another configuration, and were learned with today's."""

    epoch: int
    since: int
    step: int
    examples: int
    other_config: int
    digest: str


def unlearn(
    log: Log, config: Config, features: FeatureSet, user_id: Id, before: int, time_ms: int
) -> Unlearned | None:
    """Replays the live line without what came of a user's events up to offset ``before``, and makes it the
    live epoch; None where no step holds an example of theirs. Raises CantUnlearn, having changed nothing.

    Ended by a kill, it may be called again: the live pointer moves when all else is there.
    """
    line, epoch = MAIN, live_epoch(log)
    key = str(user_id).encode()
    partition = partition_of(user_id, log.partitions(EXAMPLES))
    view = _Without(log, key, before)
    places = view.places(partition)
    past = Past.read(log, line, epoch, partition, places[0] if places else None)
    first = past.first_step()
    if first is None:
        return None
    folder = Path(config.state) / "snapshots"
    beginning = build_model(features, config.model).read_dense()
    shards, since = _shards_before(folder, spec_of(config), beginning, past, first)
    new = 1 + max(past.newest_epoch, *_epochs(folder, line), epoch)
    _check_log(view, past, since)
    _append_steps(log, past, since, new)
    worker = _replay(view, config, features, shards, new, past.last)
    for shard in shards:
        arrays, meta = shard.export()
        part, parts = shard.spec.part, shard.spec.parts
        snapshots.write_part(folder, line, new, past.last, part, parts, arrays, meta)
    point(log, line, new, "a user was unlearned", time_ms)
    if changes_records(log):
        erase_records(log, EXAMPLES, partition, key, before, log.end(EXAMPLES, partition))
    _remove_replaced(Path(config.state), past, first)
    log.trim(DELTAS, 0, log.end(DELTAS, 0))  # they tell of the replaced history
    others = worker.counts["other_config"]
    return Unlearned(new, since, past.last, len(places), others, digest_of_shards(shards))


class _Without:
    """A log in which a user's examples are empty places. All else is the log's own."""

    def __init__(self, log: Log, key: bytes, before: int) -> None:
        self._log, self._key, self._before = log, key, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        records = self._log.read(topic, partition, offset, limit)
        return (
            [self._left(record) or record for record in records] if topic == EXAMPLES else records
        )

    def places(self, partition: int) -> list[int]:
        """The offsets of the examples that are left out, ascending."""
        end = self._log.end(EXAMPLES, partition)
        offsets = self._log.keyed(EXAMPLES, partition, [self._key], end)
        records = (self._log.read(EXAMPLES, partition, offset, 1)[0] for offset in offsets)
        return [
            record.offset
            for record in records
            if self._left(record) is not None and without_example(record.value) is None
        ]

    def _left(self, record: Record) -> Record | None:
        if record.key != self._key:
            return None
        return left_of(EXAMPLES, record, self._before)


@dataclass
class Past:
    """The steps that led to where a line is. An epoch's records replace those of earlier ones from its first
    step on. ``touching``: the step of each epoch that holds the wanted example."""

    line: str
    epoch: int
    firsts: dict[int, int] = field(default_factory=dict)
    touching: dict[int, int] = field(default_factory=dict)
    last: int = 0
    newest_epoch: int = 0  # of any record, also of one that never came to be live

    @staticmethod
    def read(log: Log, line: str, epoch: int, partition: int, offset: int | None) -> "Past":
        """Reads all step records. (partition, offset): the wanted example."""
        past = Past(line, epoch)
        for step in _steps(log):
            if step.line != line:
                continue
            past.newest_epoch = max(past.newest_epoch, step.epoch)
            if step.epoch > epoch:
                continue
            past.firsts.setdefault(step.epoch, step.step)
            if step.epoch == epoch:
                past.last = step.step
            for its in step.ranges:
                if offset is not None and its.partition == partition:
                    if its.start <= offset < its.stop:
                        past.touching[step.epoch] = step.step
        return past

    def replaced_from(self, epoch: int) -> int:
        """The first step of an epoch that a later one has replaced."""
        return min((s for e, s in self.firsts.items() if e > epoch), default=self.last + 1)

    def first_step(self) -> int | None:
        """The step that holds the wanted example, in the history as it is now."""
        found = [s for e, s in self.touching.items() if s < self.replaced_from(e)]
        return min(found, default=None)

    def records(self, log: Log, after: int) -> Iterator[Step]:
        """The records of the steps after ``after``, in order; empty ones where they can't be read."""
        for epoch in sorted(self.firsts):
            reader = StepReader(log, self.line, epoch)
            for number in range(max(after + 1, self.firsts[epoch]), self.replaced_from(epoch)):
                step = reader.record(number)
                if step is None:
                    raise CantUnlearn(
                        f"step {number} of line {self.line}, epoch {epoch}, has no record on the log: it "
                        "can't be learned again. Bring the topic steps back as it was"
                    )
                yield step


def _steps(log: Log) -> Iterator[Step]:
    offset = log.begin(STEPS, 0)
    while records := log.read(STEPS, 0, offset, _READ):
        for record in records:
            try:
                yield unpack(record.value, Step)
            except UNREADABLE:
                continue
        offset = records[-1].offset + 1


def _shards_before(
    folder: Path, spec: ShardSpec, beginning: Vector, past: Past, first: int
) -> tuple[list[Shard], int]:
    """The line as it was before step ``first``, from the newest sound snapshot that stands, and its step; at
    the line's beginning where there is none."""
    found = [
        (step, epoch)
        for epoch in past.firsts
        for step in snapshots.complete_steps(folder, past.line, epoch)
        if step < min(first, past.replaced_from(epoch))
    ]
    for step, epoch in sorted(found, reverse=True):
        snapshot = snapshots.latest(folder, past.line, epoch, step).snapshot
        if snapshot is not None:
            shards = fresh_shards(spec, beginning)
            for shard in shards:
                load_shard(shard, snapshot)
            return shards, step
    return fresh_shards(spec, beginning), 0


def _check_log(log: Any, past: Past, since: int) -> None:
    """Whether the log still has the examples of the steps to learn: all of them are read once."""
    starts: dict[int, int] = {}
    for step in past.records(log, since):
        for its in step.ranges:
            starts.setdefault(its.partition, its.start)
    gone = {
        p: log.begin(EXAMPLES, p) for p, start in starts.items() if start < log.begin(EXAMPLES, p)
    }
    if gone:
        raise CantUnlearn(
            f"the newest snapshot from before the user's first example is of step {since}, and the log no "
            f"longer has all examples after it (by partition, it begins at {gone}). Forgetting without "
            "--unlearn still drops the user's rows, and what the shared weights learned fades with training; "
            "to have that gone too, begin anew in another state folder. For the next time keep more "
            "snapshots (step.snapshots_kept) and a longer log (log.retention_hours)"
        )


def _append_steps(log: Log, past: Past, since: int, epoch: int) -> None:
    """A step is data: the records of the new epoch stand on the log before anyone learns by them."""
    key, waiting = past.line.encode(), list[Append]()
    for step in past.records(log, since):
        waiting.append(Append(0, key, pack(replace(step, epoch=epoch))))
        if len(waiting) >= _APPEND:
            log.append(STEPS, waiting)
            waiting = []
    if waiting:
        log.append(STEPS, waiting)


def _replay(
    log: Any, config: Config, features: FeatureSet, shards: Sequence[Shard], epoch: int, last: int
) -> Worker:
    learner = Learner(build_model(features, config.model))
    worker = Worker(0, 1, log, LocalClient(shards), learner, config, MAIN, epoch)
    while min(shard.applied for shard in shards) < last:
        worker.turn()
    return worker


def _epochs(folder: Path, line: str) -> list[int]:
    there = folder / line
    return (
        [int(p.name.split("-")[0]) for p in there.glob("[0-9]*-[0-9]*")] if there.is_dir() else []
    )


def _remove_replaced(state: Path, past: Past, first: int) -> None:
    """Removes what holds the user's influence: snapshots from their first example on, write-ahead files."""
    for version in (state / "snapshots" / past.line).glob("[0-9]*-[0-9]*"):
        epoch, step = map(int, version.name.split("-"))
        if epoch <= past.epoch and step >= first:
            shutil.rmtree(version)
    for epoch in range(past.epoch + 1):
        for file in (state / "parts" / "shards").glob(f"{past.line}-{epoch}-*"):
            file.unlink()
