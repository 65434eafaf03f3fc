"""Where a line beside live begins: a candidate from the registry, a guard and an arm's line from a snapshot
of live, and each that was at work before from its own.

What it is asked about begins after what it was trained on, in all partitions.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from experiments.promotion.epoch_model import with_size
from experiments.promotion.lifecycle import ARM, CandidateState, Lifecycle
from parameter_server.storage import snapshots
from parameter_server.storage.mmap_shard import open_mmap_shard
from recsys.config.system_config import Config, ModelConfig
from recsys.events.control_records import Live
from recsys.events.records import EXAMPLES, STEPS, Step
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost
from recsys.model.model import build_model
from recsys.process.log_consumer import readable
from training.candidates.registry import Refused, Registry
from training.candidates.shadow import Shadow
from training.lines.line import MAIN, whole_spec
from training.steps.lineage import Lineage


class LineStart:
    """``clock`` gives milliseconds."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, clock: Callable[[], int]
    ) -> None:
        self._log, self._config, self._features, self._clock = log, config, features, clock
        self._folder = Path(config.state) / "snapshots"

    def begin(self, standing: CandidateState, lifecycle: Lifecycle, epoch: int) -> Shadow:
        """From its own newest snapshot; at first from the registry, or a guard from the newest of the epoch
        that it is. ``epoch``: the live one. Raises Refused, LogLost, NoSnapshot."""
        line, its = standing.line, standing.candidate
        config = with_size(self._config, its.size)
        spec, dense = (
            whole_spec(config, line),
            build_model(self._features, config.model).read_dense(),
        )
        own = snapshots.latest(self._folder, line, 0).snapshot
        if own is None and _is_of_live(standing):
            # Live may have several shards: mapped, and copied on write, is a snapshot of one.
            found = self._from_live(standing, lifecycle, epoch)
            write_line(self._folder, line, *open_mmap_shard(spec, dense, *found).export())
            own = snapshots.latest(self._folder, line, 0).snapshot
        if own is not None:
            shard = open_mmap_shard(spec, dense, own)
        else:
            found = self._from_registry(standing, lifecycle, epoch, config.model)
            shard = open_mmap_shard(spec, dense, *found)
        shadow = Shadow(
            self._log, config, self._features, line, shard, lifecycle.lives, its.learns, its.arm
        )
        if shadow.arm is not None:
            assert own is not None, "written above"
            shadow.arm.load(own.read(0, lambda name: name.startswith(ARM)))
        if not _is_of_live(standing):
            with suppress(Refused):  # a registry that is away says nothing of one that is at work
                made = Registry(its.registry).provenance(line)
                if made.log_id:
                    shadow.unseen_from = 1 + self._last_known(made.offsets, lifecycle.lives)[1]
        return shadow

    def _from_registry(
        self, standing: CandidateState, lifecycle: Lifecycle, epoch: int, model: ModelConfig
    ) -> tuple[snapshots.Snapshot, int]:
        """Its snapshot, and the step that it stands after. Raises Refused, LogLost."""
        registry = Registry(standing.candidate.registry)
        its, snapshot = registry.check(
            standing.line, self._features, model,
            holdout_from_ms=self._clock(), log_id=self._log.id, or_data=True,
            unlearned=lifecycle.unlearned,
        )  # fmt: skip
        if not its.log_id:
            return snapshot, max((s.step for s in self._steps() if s.epoch == epoch), default=0)
        step = self._last_known(its.offsets, lifecycle.lives)[0]
        self._check_there(step + 1, lifecycle.lives)
        return snapshot, step

    def _from_live(
        self, standing: CandidateState, lifecycle: Lifecycle, epoch: int
    ) -> tuple[snapshots.Snapshot, int]:
        """The newest snapshot of what was live before, for a guard, or of what is live, for an arm's line. It
        learns again what was learned after that, and then goes on. Raises NoSnapshot, LogLost."""
        of = lifecycle.guarded_live(standing).of if standing.guards else epoch
        found = snapshots.latest(self._folder, MAIN, of)
        if found.snapshot is None:
            raise snapshots.NoSnapshot(f"{self._folder}/{MAIN} of epoch {of}", found.reasons)
        self._check_there(found.snapshot.step + 1, lifecycle.lives)
        return found.snapshot, found.snapshot.step

    def _last_known(self, offsets: dict[int, int], lives: list[Live]) -> tuple[int, int]:
        """The last step before the first that has an example at or after these offsets, and the last that has
        one before them: partitions end at different steps."""
        lineage = Lineage(self._log, MAIN, lives)
        whole, some, open_ = 0, 0, False
        for step in self._steps():
            if step.epoch != lineage.epoch_of(step.step):
                continue
            if any(r.start < offsets.get(r.partition, 0) for r in step.ranges):
                some = step.step
            open_ = open_ or any(r.stop > offsets.get(r.partition, 0) for r in step.ranges)
            if not open_:
                whole = step.step
        return whole, max(whole, some)

    def _check_there(self, number: int, lives: list[Live]) -> None:
        """Whether the log still has a step's examples. Raises LogLost."""
        step = Lineage(self._log, MAIN, lives).record(number)
        ranges = step.ranges if step else []
        if any(r.start < self._log.begin(EXAMPLES, r.partition) for r in ranges):
            raise LogLost(
                f"the log no longer has the examples of step {number}, the first that the candidate "
                "hasn't learned: train one until later, or keep a longer log (log.retention_hours)"
            )

    def _steps(self) -> list[Step]:
        return [step for step in readable(self._log, STEPS, Step) if step.line == MAIN]


def write_line(
    folder: Path, line: str, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]
) -> None:
    """Writes the snapshot of a line that has one shard."""
    snapshots.write_part(folder, line, 0, meta["step"], 0, 1, dict(arrays), meta)


def _is_of_live(standing: CandidateState) -> bool:
    """Whether it begins from a snapshot of the live line, and stands in no registry."""
    return bool(standing.guards) or standing.stage == ARM
