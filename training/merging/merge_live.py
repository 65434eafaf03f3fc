"""Merges a candidate of the registry with the live line by interpolation, into another candidate.

Both must descend from one snapshot of the live line, from which the offline job began (``recsys offline
--init``). The merged candidate continues after the step of live's newest snapshot, and is judged like any
candidate.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from experiments.promotion.epoch_model import config_at, features_at
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.shard.shard import Shard
from parameter_server.storage.durable_shard import load_shard
from parameter_server.storage.snapshots import Snapshot, latest
from recsys.config.system_config import Config, tables_of
from recsys.events.hashing import Id
from recsys.events.records import Step
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost
from recsys.model.model import build_model
from training.candidates.registry import Provenance, Refused, Registry, SnapshotRef, reference_to
from training.continual.learner import Learner
from training.continual.row_usage import examples_per_row
from training.continual.worker import rows_of_users
from training.lines.line import MAIN, whole_spec
from training.merging.merge import Blends, Parent, Since, interpolate
from training.offline.vocabulary import KeyCounter
from training.steps.lineage import Lineage, starts_after
from training.steps.step_reader import ExampleCheck, read_lanes

_RECENT: Final = 256  # steps before live's snapshot that are searched for each partition's offset


class LiveMerge:
    """Merges candidates with the live line as it is now. Raises Refused if live has no snapshot. ``now_ms``:
    upper bound of the event time that was learned."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, lifecycle: Lifecycle, now_ms: int
    ) -> None:
        epoch = lifecycle.live.epoch if lifecycle.live is not None else 0
        self._unlearned = lifecycle.unlearned
        self._config = config_at(config, lifecycle, MAIN, epoch)
        features = features_at(features, lifecycle, MAIN, epoch)
        self._log, self._features, self._now_ms = log, features, now_ms
        self._lives = [live for live in lifecycle.lives if live.line == MAIN]
        self._model = build_model(features, self._config.model)
        self._lineage = Lineage(log, MAIN, self._lives)
        self._folder = Path(config.state) / "snapshots"
        snapshot, reasons = latest(self._folder, MAIN, epoch)
        if snapshot is None:
            why = "; ".join(reasons) or "none was taken yet"
            raise Refused(f"no snapshot of {MAIN}, epoch {epoch}, to merge with: {why}")
        self.live = snapshot

    def merge(self, registry: Registry, name: str, blends: Blends, merged_name: str) -> None:
        """Adds a candidate between ``name`` and live. Raises Refused with the reason."""
        source, snapshot = registry.check(
            name, self._features, self._config.model,
            holdout_from_ms=self._now_ms, log_id=self._log.id, unlearned=self._unlearned,
        )  # fmt: skip
        if source.ancestor is None:
            raise Refused(
                f"candidate {name} began from initial values, so it has no snapshot in common with live, and "
                "interpolating their weights is meaningless: train one with `recsys offline --init "
                f"{self._folder / MAIN}`, or propose it as it is, to catch up"
            )
        self._check_descends(source.ancestor)
        steps = self._steps_since(source.ancestor)
        since, offsets = self._since(steps), self._offsets(source, steps)
        snapshots = (self.live, snapshot, registry.ancestor(name))
        online, offline, ancestor = map(self._export, snapshots)
        merged = interpolate(online, offline, ancestor, blends, since)
        arrays = {key: array for key, array in merged.arrays.items() if not key.startswith("held/")}
        until_ms = max(source.until_ms, int(merged.meta["clock_ms"]) + 1)
        provenance = Provenance(
            name=merged_name, kind="merged", feature_set=source.feature_set, model=source.model,
            config=source.config, code=source.code, made_ms=self._now_ms, from_ms=source.from_ms,
            until_ms=min(self._now_ms, until_ms), log_id=source.log_id, offsets=offsets,
            examples=source.examples + sum(step.examples for step in steps), epochs=source.epochs,
            metrics={
                "merge.rare": blends.rows.rare, "merge.frequent": blends.rows.frequent,
                "merge.half": blends.rows.half, "merge.dense": blends.dense,
            },
            parents=[reference_to(self.live), reference_to(snapshot)],
            ancestor=source.ancestor, seed=source.seed,
        )  # fmt: skip
        registry.add(provenance, arrays, merged.meta, self.live.step)

    def _check_descends(self, ancestor: SnapshotRef) -> None:
        """Raises Refused unless live descends from the ancestor by training alone."""
        version = f"{ancestor.line}, epoch {ancestor.epoch}, step {ancestor.step}"
        if ancestor.line != MAIN:
            raise Refused(
                f"the candidate began from {version}, which isn't of the live line: train one from {MAIN}"
            )
        by_epoch, epoch = {live.epoch: live for live in self._lives}, self.live.epoch
        while epoch != ancestor.epoch:
            live = by_epoch.get(epoch)
            if live is None or live.parent_epoch >= epoch:
                raise Refused(f"live never was {version}: train a candidate from what is live")
            if live.candidate:
                raise Refused(
                    f"{live.candidate} took the place of live's weights in epoch {epoch}, after the "
                    f"candidate had begun from {version}: nothing is in common any more; train one from what "
                    "is live"
                )
            if ancestor.step > live.base_step:
                raise Refused(
                    f"the candidate began from {version}, which epoch {epoch} took back to step "
                    f"{live.base_step}: train one from what is live"
                )
            epoch = live.parent_epoch
        if ancestor.step > self.live.step:
            raise Refused(
                f"live's newest snapshot is of step {self.live.step}, before {version}, which the candidate "
                "began from: wait for the next"
            )

    def _steps_since(self, ancestor: SnapshotRef) -> list[Step]:
        """Records of the steps that live learned since the ancestor, up to its snapshot. Raises Refused."""
        steps = []
        for number in range(ancestor.step + 1, self.live.step + 1):
            step = self._lineage.record(number)
            if step is None:
                raise Refused(
                    f"the log has no record of step {number}, which live has learned since the candidate "
                    "began: it can't be known what used which row; train one from a newer snapshot"
                )
            steps.append(step)
        return steps

    def _since(self, steps: Sequence[Step]) -> Since:
        """Counts examples by the rows they used, and collects the rows of forgotten users. Raises Refused."""
        learner = Learner(self._model)
        check = ExampleCheck(self._features, self._model.ranker.shape.dense, log=self._log)
        counter = KeyCounter(table.name for table in tables_of(self._config.model))
        forgotten: set[Id] = set()
        for step in steps:
            try:
                lanes = read_lanes(self._log, step, range(step.lanes), check)
            except LogLost as error:
                raise Refused(
                    f"the log no longer has what live learned since the candidate began ({error}): train one "
                    "from a newer snapshot, or keep a longer log (log.retention_hours)"
                ) from None
            for lane in lanes.values():
                forgotten.update(lane.forget)
                if lane.examples:
                    lookup = learner.prepare(lane.examples).lookup
                    for table, counts in examples_per_row(lookup).items():
                        counter.add(table, lookup.keys[table], counts, step.time_ms)
        uses = {table: (seen.keys, seen.counts) for table, seen in counter.totals().items()}
        return Since(uses, rows_of_users(sorted(forgotten, key=str)))

    def _offsets(self, source: Provenance, steps: Sequence[Step]) -> dict[int, int]:
        """Next offsets to learn after live's snapshot, by partition. Raises Refused if the candidate has
        learned more than live had: a shadow would score it on examples it was trained on."""
        ends = {part.partition: part.stop for step in steps for part in step.ranges}
        starts = self._ends_before() | starts_after(self._lineage, self.live.step)
        offsets = {p: ends.get(p, starts.get(p, offset)) for p, offset in source.offsets.items()}
        ahead = [p for p, offset in source.offsets.items() if offset > offsets[p]]
        if ahead:
            raise Refused(
                f"live's newest snapshot is of step {self.live.step}, and the candidate has learned what "
                f"came after that (partitions {ahead}): wait for the next snapshot (step.snapshot_every)"
            )
        return offsets | {p: end for p, end in ends.items() if p not in offsets}

    def _ends_before(self) -> dict[int, int]:
        """End offsets of the last steps before live's snapshot, by partition they touch."""
        ends = dict[int, int]()
        for number in range(max(1, self.live.step - _RECENT), self.live.step + 1):
            step = self._lineage.record(number)
            ends |= {part.partition: part.stop for part in step.ranges} if step else {}
        return ends

    def _export(self, snapshot: Snapshot) -> Parent:
        """A snapshot of any number of shards as the export of one."""
        spec = whole_spec(self._config, snapshot.line, snapshot.epoch)
        shard = Shard(spec, self._model.read_dense())
        load_shard(shard, snapshot)
        return Parent(*shard.export())
