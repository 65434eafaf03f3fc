"""Merges a candidate of the registry with the live line by interpolation, into another candidate.

Both must come from one snapshot of the live line: the offline job began from it (``recsys offline --init``),
and live went on from it. A row's share follows how many of the live line's examples used it since. What
comes of it stands after the step of live's newest snapshot, so that a shadow catches up from there, and it is
judged like any candidate: the weights that serve are those that prove themselves on the stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.promotion.epoch_model import config_at
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.shard.shard import Shard
from parameter_server.storage import snapshots
from parameter_server.storage.durable_shard import load_shard
from parameter_server.storage.snapshots import Snapshot
from parameter_server.table.table import Arrays
from recsys.config.system_config import Config, tables_of
from recsys.events.hashing import Id
from recsys.events.records import Step
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log, LogLost
from recsys.model.model import build_model
from training.candidates.registry import (
    Parent as Origin,
)
from training.candidates.registry import (
    Provenance,
    Refused,
    Registry,
    parent_of,
)
from training.continual.learner import Learner
from training.continual.rows_behind import examples_behind
from training.continual.worker import rows_of
from training.lines.line import MAIN, whole_spec
from training.merging.merge import Blends, Parent, Since, interpolate
from training.offline.vocabulary import Counter
from training.steps.lineage import Lineage, starts_after
from training.steps.step_reader import ExampleCheck, read_lanes

Keys = NDArray[np.int64]
_LATELY: Final = 256  # steps until live's snapshot that are looked at for where each partition was


@dataclass(frozen=True)
class Merged:
    """A candidate that is to be added: what ``Registry.add`` takes."""

    provenance: Provenance
    arrays: Arrays
    meta: Mapping[str, Any]
    step: int


class LiveMerge:
    """The live line as it is now, to merge candidates with. Raises Refused where nothing of it can be merged.

    ``now_ms``: nothing that is merged may be of later.
    """

    def __init__(
        self,
        log: Log,
        config: Config,
        features: FeatureSet,
        lifecycle: Lifecycle,
        now_ms: int,
    ) -> None:
        live = lifecycle.live
        epoch = live.epoch if live is not None else 0
        self._unlearned, self._config = (
            lifecycle.unlearned,
            config_at(config, lifecycle, MAIN, epoch),
        )
        self._log, self._features = log, features
        lives = [live for live in lifecycle.lives if live.line == MAIN]
        self._lives, self._now_ms = lives, now_ms
        self._model = build_model(features, self._config.model)
        self._lineage = Lineage(log, MAIN, self._lives)
        self._folder = Path(config.state) / "snapshots"
        found, reasons = snapshots.latest(self._folder, MAIN, epoch)
        if found is None:
            why = "; ".join(reasons) or "none was taken yet"
            raise Refused(f"no snapshot of {MAIN}, epoch {epoch}, to merge with: {why}")
        self.live = found

    def merge(self, registry: Registry, name: str, blends: Blends, merged_name: str) -> Merged:
        """A candidate between ``name`` and live. Raises Refused with the reason."""
        its, snapshot = registry.check(
            name, self._features, self._config.model,
            holdout_from_ms=self._now_ms, log_id=self._log.id, unlearned=self._unlearned,
        )  # fmt: skip
        if its.ancestor is None:
            raise Refused(
                f"candidate {name} began from initial values, so it has no snapshot in common with live, and "
                "the middle between their weights means nothing: train one with `recsys offline --init "
                f"{self._folder / MAIN}`, or propose it as it is, to catch up"
            )
        self._check_descends(its.ancestor)
        steps = self._steps_since(its)
        since, offsets = self._since(steps), self._offsets(its, steps)
        origin = registry.ancestor(name)
        ancestor = Parent(*self._export(origin))
        merged = interpolate(
            ancestor.child(*self._export(self.live)), ancestor.child(*self._export(snapshot)),
            ancestor, blends, since,
        )  # fmt: skip
        kept = {key: array for key, array in merged.arrays.items() if not key.startswith("held/")}
        provenance = Provenance(
            name=merged_name, kind="merged", feature_set=its.feature_set, model=its.model,
            config=its.config, code=its.code, made_ms=self._now_ms, from_ms=its.from_ms,
            until_ms=min(self._now_ms, max(its.until_ms, int(merged.meta["clock_ms"]) + 1)),
            log_id=its.log_id, offsets=offsets,
            examples=its.examples + sum(step.examples for step in steps), epochs=its.epochs,
            metrics=_told(blends), parents=[parent_of(self.live), parent_of(snapshot)],
            ancestor=its.ancestor, seed=its.seed,
        )  # fmt: skip
        return Merged(provenance, kept, dict(merged.meta), self.live.step)

    def _check_descends(self, ancestor: Origin) -> None:
        """Whether live has learned on from it, and from nothing else, ever since. Raises Refused."""
        said = f"{ancestor.line}, epoch {ancestor.epoch}, step {ancestor.step}"
        if ancestor.line != MAIN:
            raise Refused(
                f"the candidate began from {said}, which isn't of the live line: train one from {MAIN}"
            )
        by_epoch, epoch = {live.epoch: live for live in self._lives}, self.live.epoch
        while epoch != ancestor.epoch:
            live = by_epoch.get(epoch)
            if live is None or live.of >= epoch:
                raise Refused(f"live never was {said}: train a candidate from what is live")
            if live.candidate:
                raise Refused(
                    f"{live.candidate} took the place of live's weights in epoch {epoch}, after the "
                    f"candidate had begun from {said}: nothing is in common any more; train one from what is "
                    "live"
                )
            if ancestor.step > live.since:
                raise Refused(
                    f"the candidate began from {said}, which epoch {epoch} took back to step {live.since}: "
                    "train one from what is live"
                )
            epoch = live.of
        if ancestor.step > self.live.step:
            raise Refused(
                f"live's newest snapshot is of step {self.live.step}, before {said}, which the candidate "
                "began from: wait for the next"
            )

    def _steps_since(self, its: Provenance) -> list[Step]:
        """The records of what live has learned since the ancestor, until its snapshot. Raises Refused."""
        assert its.ancestor is not None
        found = []
        for number in range(its.ancestor.step + 1, self.live.step + 1):
            step = self._lineage.record(number)
            if step is None:
                raise Refused(
                    f"the log has no record of step {number}, which live has learned since the candidate "
                    "began: it can't be known what used which row; train one from a newer snapshot"
                )
            found.append(step)
        return found

    def _since(self, steps: Sequence[Step]) -> Since:
        """How many examples used each row, and whose rows left as they were forgotten. Raises Refused."""
        learner = Learner(self._model)
        check = ExampleCheck(self._features, self._model.ranker.shape.dense)
        counter = Counter(table.name for table in tables_of(self._config.model))
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
                    for table, counts in examples_behind(lookup).items():
                        counter.see(table, lookup.keys[table], counts, step.time_ms)
        uses = {table: (its.keys, its.counts) for table, its in counter.sightings().items()}
        return Since(uses, rows_of(sorted(forgotten, key=str)))

    def _offsets(self, its: Provenance, steps: Sequence[Step]) -> dict[int, int]:
        """Where learning goes on after live's snapshot, by partition. Raises Refused where the candidate has
        learned more than live had then: a shadow would ask it what it knows."""
        ends = {part.partition: part.stop for step in steps for part in step.ranges}
        starts = self._ends_before() | starts_after(self._lineage, self.live.step)
        offsets = {p: ends.get(p, starts.get(p, offset)) for p, offset in its.offsets.items()}
        ahead = [p for p, offset in its.offsets.items() if offset > offsets[p]]
        if ahead:
            raise Refused(
                f"live's newest snapshot is of step {self.live.step}, and the candidate has learned what "
                f"came after that (partitions {ahead}): wait for the next snapshot (step.snapshot_every)"
            )
        return offsets | {p: end for p, end in ends.items() if p not in offsets}

    def _ends_before(self) -> dict[int, int]:
        """Where the last steps until live's snapshot end, by partition, of those that they touch."""
        first, ends = max(1, self.live.step - _LATELY), dict[int, int]()
        for number in range(first, self.live.step + 1):
            step = self._lineage.record(number)
            ends |= {part.partition: part.stop for part in step.ranges} if step else {}
        return ends

    def _export(self, snapshot: Snapshot) -> tuple[Arrays, dict[str, Any]]:
        """A snapshot of any number of shards as the export of one."""
        spec = whole_spec(self._config, snapshot.line, snapshot.epoch)
        shard = Shard(spec, self._model.read_dense())
        load_shard(shard, snapshot)
        return shard.export()


def _told(blends: Blends) -> dict[str, float]:
    """The weights, as they stand in the provenance."""
    rows = blends.rows
    return {
        "merge.rare": rows.rare, "merge.frequent": rows.frequent, "merge.half": rows.half,
        "merge.dense": blends.dense,
    }  # fmt: skip
