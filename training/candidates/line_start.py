"""Starts a line beside live: from a snapshot of live or from the registry, as its kind says, and one that ran
before from its own. It is scored only on examples after those it was trained on."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from experiments.promotion.epoch_model import features_at, features_of, with_size
from experiments.promotion.kinds.line_state import LineState
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.storage import snapshots
from parameter_server.storage.changes import Changes
from parameter_server.storage.mmap_shard import open_mmap_shard
from recsys.config.system_config import Config, ModelConfig
from recsys.events.control_records import Live
from recsys.events.records import EXAMPLES, STEPS, Step
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost
from recsys.model.model import Model, build_model
from recsys.model.widening import widened
from recsys.process.log_consumer import readable
from training.candidates.arm_learner import PREFIX, ArmLearner
from training.candidates.line_files import write_line
from training.candidates.registry import Refused, Registry
from training.candidates.shadow import Shadow
from training.continual.learner import Learner
from training.lines.line import MAIN, whole_spec
from training.steps.lineage import Lineage


class LineStart:
    """Builds shadows. ``clock``: milliseconds."""

    def __init__(self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]) -> None:
        self._log, self._config, self._features, self._clock = log, config, features, clock
        self._folder = Path(config.state) / "snapshots"

    def begin(self, state: LineState, lifecycle: Lifecycle, epoch: int) -> Shadow:
        """Starts from the line's own newest snapshot; the first time from the registry, or from the newest
        snapshot of an epoch of live. ``epoch``: the live one. Raises Refused, LogLost, NoSnapshot."""
        line, candidate, source_epoch = state.line, state.candidate, state.source(epoch)
        config = with_size(self._config, candidate.size)
        spec, features = whole_spec(config, line), features_of(self._features, candidate.size)
        model = build_model(features, config.model)
        dense = model.read_dense()
        own = snapshots.latest(self._folder, line, 0).snapshot
        if own is None and source_epoch is not None:
            # Live may have several shards: mapped, and copied on write, is a snapshot of one.
            source = self._from_live(lifecycle, source_epoch)
            before = features_at(self._features, lifecycle, MAIN, source_epoch)
            first = build_model(before, config.model).read_dense()
            arrays, meta = open_mmap_shard(spec, first, *source).export()
            write_line(self._folder, line, widened(arrays, before, features, config.model), meta)
            own = snapshots.latest(self._folder, line, 0).snapshot
        if own is not None:
            shard = open_mmap_shard(spec, dense, own)
        else:
            source = self._from_registry(state, lifecycle, epoch, config.model, features)
            shard = open_mmap_shard(spec, dense, *source)
        shadow = Shadow(
            self._log, config, _learner(state, model, own), line, shard, lifecycle.lives,
            candidate.learns, state.is_scored,
        )  # fmt: skip
        shadow.changes = Changes(shard, own)
        if source_epoch is None:
            with suppress(Refused):  # an unavailable registry doesn't stop a running line
                provenance = Registry(candidate.registry).provenance(line)
                if provenance.log_id:
                    last = self._last_learned(provenance.offsets, lifecycle.lives)[1]
                    shadow.unseen_from = 1 + last
        return shadow

    def _from_registry(
        self, state: LineState, lifecycle: Lifecycle, epoch: int, model: ModelConfig,
        features: FeatureSet,
    ) -> tuple[snapshots.Snapshot, int]:  # fmt: skip
        """The candidate's snapshot, and the step it continues after. Raises Refused, LogLost."""
        registry = Registry(state.candidate.registry)
        provenance, snapshot = registry.check(
            state.line, features, model,
            holdout_from_ms=self._clock(), log_id=self._log.id, or_data=True,
            unlearned=lifecycle.unlearned,
        )  # fmt: skip
        if not provenance.log_id:
            return snapshot, max((s.step for s in self._steps() if s.epoch == epoch), default=0)
        step = self._last_learned(provenance.offsets, lifecycle.lives)[0]
        self._check_available(step + 1, lifecycle.lives)
        return snapshot, step

    def _from_live(self, lifecycle: Lifecycle, epoch: int) -> tuple[snapshots.Snapshot, int]:
        """The newest snapshot of an epoch. The line repeats the steps since, then goes on. Raises NoSnapshot,
        LogLost."""
        snapshot = snapshots.require(self._folder, MAIN, epoch)
        self._check_available(snapshot.step + 1, lifecycle.lives)
        return snapshot, snapshot.step

    def _last_learned(self, offsets: dict[int, int], lives: list[Live]) -> tuple[int, int]:
        """The last step before the first with an example at or after these offsets, and the last step with an
        example before them: partitions end at different steps."""
        lineage = Lineage(self._log, MAIN, lives)
        whole, some, is_open = 0, 0, False
        for step in self._steps():
            if step.epoch != lineage.epoch_of(step.step):
                continue
            if any(r.start < offsets.get(r.partition, 0) for r in step.ranges):
                some = step.step
            is_open = is_open or any(r.stop > offsets.get(r.partition, 0) for r in step.ranges)
            if not is_open:
                whole = step.step
        return whole, max(whole, some)

    def _check_available(self, number: int, lives: list[Live]) -> None:
        """Raises LogLost if the log no longer has a step's examples."""
        step = Lineage(self._log, MAIN, lives).record(number)
        ranges = step.ranges if step else []
        if any(r.start < self._log.begin(EXAMPLES, r.partition) for r in ranges):
            raise LogLost(
                f"the log no longer has the examples of step {number}, the first that the candidate "
                "hasn't learned: train one until later, or keep a longer log (log.retention_hours)"
            )

    def _steps(self) -> list[Step]:
        return [step for step in readable(self._log, STEPS, Step) if step.line == MAIN]


def _learner(state: LineState, model: Model, own: snapshots.Snapshot | None) -> Learner:
    """Learner of a line. ``own``: the snapshot that it continues from."""
    if state.arm is None:
        return Learner(model)
    learner = ArmLearner(model, state.arm)
    if own is not None:
        learner.load(own.read(0, lambda name: name.startswith(PREFIX)))
    return learner
