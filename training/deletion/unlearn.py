"""Unlearns users exactly, or rewinds: replays history without some examples, as the line's next epoch.

Records, offsets and lanes stay; the examples become tombstones. So the weights are, bit for bit, those of a
line that never saw them. The users' influence on item counters, as they were served, isn't undone. A
running system does the same beside its live line (training/deletion/live_unlearning.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from experiments.promotion.epoch_model import features_of, with_size
from experiments.promotion.lifecycle import Lifecycle
from experiments.promotion.unlearning_requests import DONE
from parameter_server.rpc.parameter_client import LocalClient, fresh_shards
from parameter_server.shard.shard import Shard, digest_of_shards
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import load_shard
from recsys.config.system_config import Config
from recsys.events.control_records import Live, ModelSize, Unlearning
from recsys.events.records import DELTAS, EXAMPLES, Range, TrainingExample
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost, read_range
from recsys.model.model import build_model
from recsys.process.log_consumer import decoded
from training.continual.learner import Learner
from training.continual.worker import Worker
from training.deletion.live_unlearning import reason_of
from training.deletion.log_without import LogWithout, Users, keys_by_partition
from training.deletion.removal import erase_examples, remove_ended_lines, remove_replaced
from training.deletion.tombstones import UnlearnedPlaces, free_until
from training.deletion.user_history import CantUnlearn, UserHistory
from training.lines.control import ControlReader, append_control, append_live_record
from training.lines.line import MAIN, learning_digest, spec_of
from training.steps.lineage import Lineage

_TURN: Final = 64  # steps


class Unlearned(NamedTuple):
    """Result of unlearning. ``base_step``: that of the initial snapshot. ``other_config``: number of steps
    replayed with the current configuration that had been learned with another one."""

    epoch: int
    base_step: int
    step: int
    examples: int
    other_config: int
    digest: str


def unlearn(
    log: Log, config: Config, features: FeatureSet, users: Users, time_ms: int, rewind_ms: int = 0
) -> Unlearned | None:
    """Replays the live line of a stopped system without examples of the users' events up to their removals,
    from before the first step that may contain one, and makes the result the live epoch; None if no step can
    have learned one. With ``rewind_ms`` as ``Unlearning`` says. Raises CantUnlearn if that is too far back,
    and changes nothing then. May be repeated after a kill: the examples are erased last."""
    control = ControlReader(log)
    control.turn()
    lifecycle, state = control.lifecycle, Path(config.state)
    request = Unlearning(id="", users=dict(users), rewind_ms=rewind_ms, time_ms=time_ms)
    view = LogWithout(log, [*lifecycle.unlearnings.done, request])
    start = find_start(view, config, features, lifecycle, request)
    if start is None:
        return None
    examples = sum(len(view.places(p, users)) for p in range(log.partitions(EXAMPLES)))
    features = features_of(features, start.size)
    replay = Replay(view, with_size(config, start.size), features, lifecycle.lives, start.snapshot)
    while replay.step < start.history.last:
        if not replay.turn():
            raise CantUnlearn(f"the replay ended after step {replay.step}: its next can't be read")
    before, epoch = start.history.epoch, start.next_epoch
    replay.write(state / "snapshots", epoch)
    reason = reason_of(request)
    append_live_record(log, MAIN, epoch, reason, time_ms, replay.step, before, start.size)
    control.turn()
    remove_replaced(state, lifecycle, [(epoch, start.first)])
    remove_ended_lines(state, lifecycle)
    log.trim(DELTAS, 0, log.end(DELTAS, 0))  # of the replaced history
    # If the examples stay on the log, a later replay leaves them out again.
    if not erase_examples(log, config.state, request) or rewind_ms:
        done = msgspec.structs.replace(
            request, id=f"epoch-{epoch}", state=DONE, epoch=epoch, parent_epoch=before,
            base_step=start.base_step, first=start.first, step=replay.step, size=start.size,
            why=f"SHA-256 {replay.digest()}",
        )  # fmt: skip
        append_control(log, done)
    other = replay.other_config
    return Unlearned(epoch, start.base_step, replay.step, examples, other, replay.digest())


class Start(NamedTuple):
    """The beginning of a replay. ``first``: the first step that is learned again.
    ``snapshot``: from before it, None: initial values. ``size``: of its model."""

    first: int
    snapshot: snapshots.Snapshot | None
    size: ModelSize | None
    history: UserHistory
    next_epoch: int  # one that was never written

    @property
    def base_step(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.step


def find_start(
    view: LogWithout, config: Config, features: FeatureSet, lifecycle: Lifecycle, request: Unlearning
) -> Start | None:
    """Finds the start of the replay of a request; None if no step has learned what it leaves out. Raises
    CantUnlearn."""
    log: Any = view
    folder, unlearned = Path(config.state), UnlearnedPlaces(log, config.state)
    wanted, users = {}, request.users
    for partition, keys in keys_by_partition(log, {} if request.rewind_ms else users).items():
        own = min(view.places(partition, users), default=None)
        noted = unlearned.noted(partition)
        wanted[partition] = free_until(log, folder / "archive", partition, keys, own, noted)
    others, rewind_ms = unlearned.others(), request.rewind_ms
    history = UserHistory.read(log, MAIN, lifecycle.lives, wanted, others, rewind_ms)
    first = history.first_step()
    if first is None:
        return None
    if rewind_ms and users and not any(view.places(p, users) for p in range(log.partitions(EXAMPLES))):
        return None
    snapshot = _snapshot_before(folder / "snapshots", history, first)
    size = lifecycle.size(MAIN, 0 if snapshot is None else snapshot.epoch)
    used = (history.newest_epoch, *snapshots.epochs(folder / "snapshots", MAIN), history.epoch)
    start = Start(first, snapshot, size, history, 1 + max(used))
    features = features_of(features, size)
    _check(log, with_size(config, size), features, history, start.base_step, rewind_ms)
    return start


def oldest_rewind_ms(
    view: LogWithout, config: Config, features: FeatureSet, lifecycle: Lifecycle
) -> int | None:
    """The oldest time that the line can return to by its snapshots; None if there is none."""
    log: Any = view
    others = UnlearnedPlaces(log, config.state).others()
    history = UserHistory.read(log, MAIN, lifecycle.lives, {}, others)
    for step, epoch in _versions_before(Path(config.state) / "snapshots", history, history.last):
        size = lifecycle.size(MAIN, epoch)
        own = features_of(features, size)
        try:
            _check(log, with_size(config, size), own, history, step, rewind_ms=1)
            return next(history.records(log, step)).time_ms
        except CantUnlearn:
            continue
    return None


def _versions_before(folder: Path, history: UserHistory, first: int) -> list[tuple[int, int]]:
    """(step, epoch) of snapshots before step ``first`` from which learning may continue, ascending."""
    versions = [
        (step, epoch)
        for epoch in history.firsts
        for step in snapshots.complete_steps(folder, history.line, epoch)
        if history.fixed_step() <= step < min(first, history.replaced_from(epoch))
    ]
    return sorted(versions)


def _snapshot_before(folder: Path, history: UserHistory, first: int) -> snapshots.Snapshot | None:
    """The newest sound snapshot before step ``first`` from which learning may continue; None: start anew."""
    for step, epoch in reversed(_versions_before(folder, history, first)):
        snapshot = snapshots.latest(folder, history.line, epoch, step).snapshot
        if snapshot is not None:
            return snapshot
    return None


def _check(
    log: Any, config: Config, features: FeatureSet, history: UserHistory, base_step: int, rewind_ms: int
) -> None:
    """Raises CantUnlearn if the steps after ``base_step`` can't be learned again: their lanes or features
    differ from the current ones, or the log no longer has their examples."""
    starts: dict[int, int] = {}
    digest = learning_digest(config, features)
    for step in history.records(log, base_step):
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
    if gone and rewind_ms:
        raise CantUnlearn(
            f"the newest snapshot from before that time is of step {base_step}, and the log no longer has "
            f"all examples after it (by partition, it begins at {gone}): name a later time, of which a "
            "snapshot is kept. For the next time keep more snapshots (step.snapshots_kept) and a longer log "
            "(log.retention_hours)"
        )
    if gone:
        raise CantUnlearn(
            "the newest snapshot that is sure to be from before the user's first example is of step "
            f"{base_step}, and the log no longer has all examples after it (by partition, it begins at "
            f"{gone}). Forgetting without --unlearn still drops the user's rows, and what the shared weights "
            "learned fades with training; to have that gone too, begin anew in another state folder. For the "
            "next time keep more snapshots (step.snapshots_kept) and a longer log (log.retention_hours), "
            "keep the archive, and unlearn before others' records are erased"
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


class Replay:
    """Learns the live line's steps again, from a snapshot on. Raises CantUnlearn if that is impossible."""

    def __init__(
        self, view: LogWithout, config: Config, features: FeatureSet, lives: Sequence[Live],
        snapshot: snapshots.Snapshot | None,
    ) -> None:  # fmt: skip
        """``config``: with the model of the snapshot; None: starts from initial values."""
        log: Any = view
        model = build_model(features, config.model)
        self._shards = fresh_shards(spec_of(config), model.read_dense())
        if snapshot is not None:
            _load(self._shards, snapshot)
        client, lineage = LocalClient(self._shards), Lineage(log, MAIN, lives)
        self._worker = Worker(0, 1, log, client, Learner(model), config, reader=lineage, reports=False)

    @property
    def step(self) -> int:
        return min(shard.applied for shard in self._shards)

    @property
    def other_config(self) -> int:
        """Number of steps that had been learned with another configuration."""
        return self._worker.counts["other_config"]

    def turn(self, until: int | None = None) -> int:
        """Learns some steps, until one if given; returns their number."""
        before = self.step
        try:
            for number in range(before, min(before + _TURN, until or before + _TURN)):
                self._worker.turn()
                if self.step == number:
                    break
        except (ValueError, LogLost) as error:
            raise CantUnlearn(
                f"the replay of step {self.step + 1} ended: {error}. The model that is live is as it was"
            ) from error
        return self.step - before

    def write(self, folder: Path, epoch: int) -> None:
        """Writes a snapshot of an epoch of the live line, after the newest step."""
        for shard in self._shards:
            arrays, meta = shard.export()
            part, parts = shard.spec.part, shard.spec.parts
            snapshots.write_part(folder, MAIN, epoch, shard.applied, part, parts, arrays, meta)

    def digest(self) -> str:
        return digest_of_shards(self._shards)


def _load(shards: Sequence[Shard], snapshot: snapshots.Snapshot) -> None:
    try:
        for shard in shards:
            load_shard(shard, snapshot)
    except (OSError, ValueError, KeyError) as error:
        raise CantUnlearn(
            f"snapshot {snapshot.folder} can't be loaded as the model is set now ({error}): set "
            "model and parameter_server as they were when it was written, or mend the file"
        ) from error
