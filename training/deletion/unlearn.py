"""Unlearns a user exactly: replays history without their examples, as the line's next epoch.

Records, offsets and lanes stay; the user's examples become tombstones. So the weights are, bit for bit, those
of a line that never saw them. The user's influence on item counters, as they were served, isn't undone. The
system must be stopped meanwhile.
"""

import shutil
from collections.abc import Sequence
from itertools import islice
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
)
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Append, Log, LogLost, Record, read_range
from recsys.model.model import build_model
from recsys.process.log_consumer import decoded
from training.candidates.director import append_live_record
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.deletion.erasure import (
    changes_records,
    erase_records,
    erased_record,
    records_of_key,
)
from training.deletion.tombstones import UnlearnedPlaces, free_until
from training.deletion.user_history import CantUnlearn, UserHistory
from training.lines.control import ControlReader
from training.lines.line import MAIN, learning_digest, spec_of

__all__ = ["CantUnlearn", "Unlearned", "unlearn"]

_APPEND: Final = 500  # step records at once


class Unlearned(NamedTuple):
    """Result of unlearning. ``since``: the step of the initial snapshot. ``other_config``: number of steps
    replayed with the current configuration that had been learned with another one."""

    epoch: int
    since: int
    step: int
    examples: int
    other_config: int
    digest: str


def unlearn(
    log: Log, config: Config, features: FeatureSet, user_id: Id, before: int, time_ms: int
) -> Unlearned | None:
    """Replays the live line without examples of a user's events up to offset ``before``, from before the
    first step that may contain one, and makes the result the live epoch; None if no step can have learned
    one. Raises CantUnlearn if that is too far back, and changes nothing then. May be repeated after a kill:
    the user's examples are erased last."""
    line, key = MAIN, str(user_id).encode()
    partition = partition_of(user_id, log.partitions(EXAMPLES))
    view, unlearned = _LogWithout(log, key, before), UnlearnedPlaces(log, config.state)
    places = view.places(partition)
    own, archive = min(places, default=None), Path(config.state) / "archive"
    free = free_until(log, archive, partition, key, own, unlearned.noted(partition))
    history = UserHistory.read(log, line, (partition, free), unlearned.others())
    first = history.first_step()
    if first is None:
        return None
    folder, control = Path(config.state) / "snapshots", ControlReader(log)
    control.turn()
    snapshot = _snapshot_before(folder, history, first)
    began, since = (0, 0) if snapshot is None else (snapshot.epoch, snapshot.step)
    config = config_at(config, control.lifecycle, line, began)
    shards = _shards_of(snapshot, config, features)
    new = 1 + max(history.newest_epoch, *snapshots.epochs(folder, line), history.epoch)
    _check(view, config, features, history, since)
    _append_steps(log, history, since, new)
    worker = _replay(view, config, features, shards, new, history.last)
    for shard in shards:
        arrays, meta = shard.export()
        part, parts = shard.spec.part, shard.spec.parts
        snapshots.write_part(folder, line, new, history.last, part, parts, arrays, meta)
    size = control.lifecycle.size(line, began)
    append_live_record(log, line, new, "a user was unlearned", time_ms, since, history.epoch, size)
    _remove_replaced(Path(config.state), history, first, new)
    log.trim(DELTAS, 0, log.end(DELTAS, 0))  # of the replaced history
    if changes_records(log):
        unlearned.note(partition, view.changed(partition))
        erase_records(log, EXAMPLES, partition, key, before, log.end(EXAMPLES, partition))
    other_config = worker.counts["other_config"]
    return Unlearned(new, since, history.last, len(places), other_config, digest_of_shards(shards))


class _LogWithout:
    """A log in which a user's examples are tombstones, otherwise unchanged."""

    def __init__(self, log: Log, key: bytes, before: int) -> None:
        self._log, self._key, self._before = log, key, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        records = self._log.read(topic, partition, offset, limit)
        if topic != EXAMPLES:
            return records
        return [self._erased(record) or record for record in records]

    def places(self, partition: int) -> list[int]:
        """The offsets of the user's examples, ascending."""
        return [r.offset for r in self._own(partition) if non_example(r.value) is None]

    def changed(self, partition: int) -> list[int]:
        """The offsets of all changed records: ``places``, and those of records that aren't examples."""
        return [record.offset for record in self._own(partition)]

    def _own(self, partition: int) -> list[Record]:
        end = self._log.end(EXAMPLES, partition)
        records = records_of_key(self._log, EXAMPLES, partition, self._key, end)
        return [record for record in records if self._erased(record) is not None]

    def _erased(self, record: Record) -> Record | None:
        if record.key != self._key:
            return None
        return erased_record(EXAMPLES, record, self._before)


def _snapshot_before(folder: Path, history: UserHistory, first: int) -> snapshots.Snapshot | None:
    """The newest sound snapshot before step ``first`` from which learning may continue; None: start anew."""
    candidates = [
        (step, epoch)
        for epoch in history.firsts
        for step in snapshots.complete_steps(folder, history.line, epoch)
        if history.fixed_step() <= step < min(first, history.replaced_from(epoch))
    ]
    for step, epoch in sorted(candidates, reverse=True):
        snapshot = snapshots.latest(folder, history.line, epoch, step).snapshot
        if snapshot is not None:
            return snapshot
    return None


def _shards_of(
    snapshot: snapshots.Snapshot | None, config: Config, features: FeatureSet
) -> list[Shard]:
    """The shards of a snapshot, or new ones. Raises CantUnlearn if the snapshot can't be loaded."""
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


def _check(
    log: Any, config: Config, features: FeatureSet, history: UserHistory, since: int
) -> None:
    """Raises CantUnlearn if the steps after ``since`` can't be learned again: their lanes or features differ
    from the current ones, or the log no longer has their examples."""
    starts: dict[int, int] = {}
    digest = learning_digest(config, features)
    for step in history.records(log, since):
        if step.lanes != config.step.lanes:
            raise CantUnlearn(
                f"step {step.step} was cut into {step.lanes} lanes, and step.lanes is {config.step.lanes}: "
                f"set it to {step.lanes}, the one that learned it"
            )
        for part in step.ranges:
            starts.setdefault(part.partition, part.start)
            if step.config != digest and part.start >= log.begin(EXAMPLES, part.partition):
                _check_features(log, part, features)
    begins = {p: log.begin(EXAMPLES, p) for p in starts}
    gone = {p: begin for p, begin in begins.items() if starts[p] < begin}
    if gone:
        raise CantUnlearn(
            "the newest snapshot that is sure to be from before the user's first example is of step "
            f"{since}, and the log no longer has all examples after it (by partition, it begins at {gone}). "
            "Forgetting without --unlearn still drops the user's rows, and what the shared weights learned "
            "fades with training; to have that gone too, begin anew in another state folder. For the next "
            "time keep more snapshots (step.snapshots_kept) and a longer log (log.retention_hours), keep the "
            "archive, and unlearn before others' records are erased"
        )


def _check_features(log: Any, part: Range, features: FeatureSet) -> None:
    """Raises CantUnlearn for examples with other features, which a replay would silently leave out."""
    records = read_range(log, EXAMPLES, part.partition, part.start, part.stop)
    for record, example in decoded(records, TrainingExample):
        block = example.features
        if block is not None and block.feature_set != features.digest:
            raise CantUnlearn(
                f"the example at {part.partition}/{record.offset} has feature set {block.feature_set}, "
                f"expected {features.digest}: it can't be learned again with the features of today"
            )


def _append_steps(log: Log, history: UserHistory, since: int, epoch: int) -> None:
    """Appends the records of the new epoch, before it is learned."""
    key, steps = history.line.encode(), history.records(log, since)
    while appends := [
        Append(0, key, pack(replace(step, epoch=epoch))) for step in islice(steps, _APPEND)
    ]:
        log.append(STEPS, appends)


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


def _remove_replaced(state: Path, history: UserHistory, first: int, new: int) -> None:
    """Removes files with the user's influence: snapshots from their first example on, and write-ahead files;
    and the snapshots of epochs that never were live."""
    for folder in (state / "snapshots").iterdir():  # candidates may have learned from them too
        if folder.is_dir() and folder.name != history.line:
            shutil.rmtree(folder)
    for version in (state / "snapshots" / history.line).glob("[0-9]*-[0-9]*"):
        epoch, step = map(int, version.name.split("-"))
        if epoch < new and (step >= first or epoch not in history.firsts):
            shutil.rmtree(version)
    for epoch in range(new):
        for file in (state / "parts" / "shards").glob(f"{history.line}-{epoch}-*"):
            file.unlink()
