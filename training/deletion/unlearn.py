"""Unlearns a user: history without them, from before their first example on, becomes the line's next epoch.

The steps stay what they were: the same records, the same offsets, the same lanes. The user's examples are
empty places in them. So the weights that come out are, bit for bit, those of a line that never saw the user's
examples. What others' examples carry of the user is not undone: item counters, as they were served.

The system must stand still meanwhile: nobody else appends to the log or writes snapshots.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from experiments.promotion.epoch_model import config_at
from parameter_server.rpc.parameter_client import LocalClient, fresh_shards
from parameter_server.shard.shard import Shard, digest_of_shards
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import load_shard
from recsys.config.system_config import Config
from recsys.events.hashing import Id, partition_of
from recsys.events.records import (
    DELTAS,
    EXAMPLES,
    STEPS,
    Range,
    TrainingExample,
    non_example,
    pack,
    unpack,
)
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append, Log, LogLost, Record, read_range
from recsys.model.model import build_model
from recsys.process.log_consumer import UNREADABLE
from training.candidates.director import point
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.deletion.erasure import changes_records, erase_records, left_of, read_at
from training.deletion.tombstones import Emptied, free_until
from training.deletion.user_history import CantUnlearn, Past
from training.lines.control import ControlReader
from training.lines.line import MAIN, learning_digest, spec_of

__all__ = ["CantUnlearn", "Unlearned", "unlearn"]

_APPEND: Final = 500  # step records at once


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
    live epoch; None where no step can have learned an example of theirs.

    It begins before the first step that isn't known to have none of theirs: a place may be empty already, or
    gone. Raises CantUnlearn where it can't go back so far; what is live is as it was then. Ended by a kill,
    it may be called again: the user's examples go last.
    """
    line, key = MAIN, str(user_id).encode()
    partition = partition_of(user_id, log.partitions(EXAMPLES))
    view, emptied = _Without(log, key, before), Emptied(log, config.state)
    places = view.places(partition)
    own, archive = min(places, default=None), Path(config.state) / "archive"
    free = free_until(log, archive, partition, key, own, emptied.noted(partition))
    past = Past.read(log, line, (partition, free), emptied.others())
    first = past.first_step()
    if first is None:
        return None
    folder, control = Path(config.state) / "snapshots", ControlReader(log)
    control.turn()
    found = _snapshot_before(folder, past, first)
    began = 0 if found is None else found.epoch
    config = config_at(config, control.lifecycle, line, began)
    shards, since = _shards_of(found, config, features), 0 if found is None else found.step
    new = 1 + max(past.newest_epoch, *_epochs(folder, line), past.epoch)
    _check(view, config, features, past, since)
    _append_steps(log, past, since, new)
    worker = _replay(view, config, features, shards, new, past.last)
    for shard in shards:
        arrays, meta = shard.export()
        part, parts = shard.spec.part, shard.spec.parts
        snapshots.write_part(folder, line, new, past.last, part, parts, arrays, meta)
    size = control.lifecycle.size(line, began)
    point(log, line, new, "a user was unlearned", time_ms, since, past.epoch, size)
    _remove_replaced(Path(config.state), past, first, new)
    log.trim(DELTAS, 0, log.end(DELTAS, 0))  # they tell of the replaced history
    if changes_records(log):
        emptied.note(partition, view.changed(partition))
        erase_records(log, EXAMPLES, partition, key, before, log.end(EXAMPLES, partition))
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
        return [r.offset for r in self._own(partition) if non_example(r.value) is None]

    def changed(self, partition: int) -> list[int]:
        """As ``places``, with those of what isn't an example."""
        return [record.offset for record in self._own(partition)]

    def _own(self, partition: int) -> list[Record]:
        offsets = self._log.keyed(
            EXAMPLES, partition, [self._key], self._log.end(EXAMPLES, partition)
        )
        records = read_at(self._log, EXAMPLES, partition, offsets)
        return [record for record in records if self._left(record) is not None]

    def _left(self, record: Record) -> Record | None:
        if record.key != self._key:
            return None
        return left_of(EXAMPLES, record, self._before)


def _snapshot_before(folder: Path, past: Past, first: int) -> snapshots.Snapshot | None:
    """The newest sound snapshot from before step ``first`` that stands and that may be learned on from; None:
    the line's beginning."""
    found = [
        (step, epoch)
        for epoch in past.firsts
        for step in snapshots.complete_steps(folder, past.line, epoch)
        if past.fixed_step() <= step < min(first, past.replaced_from(epoch))
    ]
    for step, epoch in sorted(found, reverse=True):
        snapshot = snapshots.latest(folder, past.line, epoch, step).snapshot
        if snapshot is not None:
            return snapshot
    return None


def _shards_of(
    snapshot: snapshots.Snapshot | None, config: Config, features: FeatureSet
) -> list[Shard]:
    """The line as it was then. Raises CantUnlearn where the snapshot can't be loaded."""
    shards = fresh_shards(spec_of(config), build_model(features, config.model).read_dense())
    if snapshot is None:
        return shards
    try:
        for shard in shards:
            load_shard(shard, snapshot)
    except (OSError, ValueError, KeyError) as error:
        raise CantUnlearn(
            f"snapshot {snapshot.folder} can't be loaded as the model is set now ({error}): set "
            "model and parameter_server as they were when it was written, or mend the file"
        ) from error
    return shards


def _check(log: Any, config: Config, features: FeatureSet, past: Past, since: int) -> None:
    """Whether the steps after ``since`` can be learned again: their lanes and features are today's, and the
    log still has their examples."""
    starts: dict[int, int] = {}
    digest = learning_digest(config, features)
    for step in past.records(log, since):
        if step.lanes != config.step.lanes:
            raise CantUnlearn(
                f"step {step.step} was cut into {step.lanes} lanes, and step.lanes is {config.step.lanes}: "
                f"set it to {step.lanes}, the one that learned it"
            )
        for its in step.ranges:
            starts.setdefault(its.partition, its.start)
            if step.config != digest and its.start >= log.begin(EXAMPLES, its.partition):
                _check_features(log, its, features)
    gone = {
        p: log.begin(EXAMPLES, p) for p, start in starts.items() if start < log.begin(EXAMPLES, p)
    }
    if gone:
        raise CantUnlearn(
            "the newest snapshot that is sure to be from before the user's first example is of step "
            f"{since}, and the log no longer has all examples after it (by partition, it begins at {gone}). "
            "Forgetting without --unlearn still drops the user's rows, and what the shared weights learned "
            "fades with training; to have that gone too, begin anew in another state folder. For the next "
            "time keep more snapshots (step.snapshots_kept) and a longer log (log.retention_hours), keep the "
            "archive, and unlearn before others' records are erased"
        )


def _check_features(log: Any, its: Range, features: FeatureSet) -> None:
    """A replay would leave out, in silence, examples of other features."""
    for record in read_range(log, EXAMPLES, its.partition, its.start, its.stop):
        with suppress(*UNREADABLE):
            block = unpack(record.value, TrainingExample).features
            if block is not None and block.feature_set != features.digest:
                raise CantUnlearn(
                    f"the example at {its.partition}/{record.offset} has feature set {block.feature_set}, "
                    f"expected {features.digest}: it can't be learned again with the features of today"
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
    try:
        while min(shard.applied for shard in shards) < last:
            worker.turn()
    except (ValueError, LogLost) as error:
        raise CantUnlearn(
            f"the replay of step {worker.step + 1} ended: {error}. The model that is live is as it was"
        ) from error
    return worker


def _epochs(folder: Path, line: str) -> list[int]:
    there = folder / line
    return (
        [int(p.name.split("-")[0]) for p in there.glob("[0-9]*-[0-9]*")] if there.is_dir() else []
    )


def _remove_replaced(state: Path, past: Past, first: int, new: int) -> None:
    """Removes what holds the user's influence: snapshots from their first example on, write-ahead files; and
    the snapshots of epochs that never came to be live."""
    for other in (state / "snapshots").iterdir():  # candidates may have learned from them too
        if other.is_dir() and other.name != past.line:
            shutil.rmtree(other)
    for version in (state / "snapshots" / past.line).glob("[0-9]*-[0-9]*"):
        epoch, step = map(int, version.name.split("-"))
        if epoch < new and (step >= first or epoch not in past.firsts):
            shutil.rmtree(version)
    for epoch in range(new):
        for file in (state / "parts" / "shards").glob(f"{past.line}-{epoch}-*"):
            file.unlink()
