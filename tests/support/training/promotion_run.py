"""A system in one process whose viewers have tastes, and candidates for it: better ones, and broken ones.

A candidate is trained repeatedly on the log; a
``change`` may then break it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from benchmarks.harness.local_system import LocalSystem, small_config
from experiments.promotion.epoch_model import with_size
from experiments.promotion.lifecycle import Lifecycle
from parameter_server.shard.lanes import LaneGradients
from parameter_server.shard.shard import Shard
from parameter_server.storage.durable_shard import load_shard
from parameter_server.storage.snapshots import Snapshot
from recsys.config.policy_config import PolicyConfig
from recsys.config.promotion_config import PromotionConfig
from recsys.config.system_config import Config, ModelConfig, digest
from recsys.events.control_records import Candidate, Control, ModelSize, OperatorRequest
from recsys.events.event_types import Item
from recsys.events.hashing import uniform
from recsys.events.records import CONTROL, Step, TrainingExample, pack
from recsys.log.protocol import Append
from recsys.model.model import build_model
from serving.access.caller import SERVER
from serving.request import Answer, Request
from training.candidates.registry import Provenance, Registry, model_size_of, plain_config
from training.continual.learner import Learner
from training.lines.line import MAIN, whole_spec
from training.steps.lineage import Lineage
from training.steps.step_reader import ExampleCheck, read_lanes

LIST: Final = 5
Change = Callable[[dict[str, Any]], None]
Relabel = Callable[[TrainingExample], TrainingExample]


class TrainedCandidate(NamedTuple):
    """A candidate's arrays and meta, the offsets of ``examples`` up to which it has learned, and its model
    configuration."""

    arrays: dict[str, Any]
    meta: dict[str, Any]
    offsets: dict[int, int]
    model: ModelConfig


class EvenViewers:
    """Viewers who mostly watch even items to the end and skip odd ones: quick to learn."""

    def __init__(self, items: int = 60, users: int = 40) -> None:
        self._items, self._users = items, users

    def items(self) -> list[Item]:
        fields = [{"tags": [f"t{n % 7}"], "duration_ms": 10_000} for n in range(self._items)]
        return [Item(time_ms=1, item_id=f"i{n}", fields=item_fields) for n, item_fields in enumerate(fields)]

    def user(self, number: int) -> str:
        return f"u{number % self._users}"

    def watch(self, answer: Answer, now_ms: int) -> list[dict[str, Any]]:
        engagements = []
        for shown in answer.items:
            now_ms += 100
            even = int(str(shown.item_id)[1:]) % 2 == 0
            liked = uniform(0, answer.request_id, shown.rank) < (0.9 if even else 0.1)
            what = {"kind": "view", "watch_ms": 9_900 if liked else 500}
            engagements.append(what | _about(answer, shown.item_id, now_ms))
        return engagements


def _about(answer: Answer, item_id: object, time_ms: int) -> dict[str, Any]:
    return {
        "type": "engagement",
        "time_ms": time_ms,
        "request_id": answer.request_id,
        "user_id": answer.impression.user_id,
        "item_id": item_id,
    }


def config_of(state: Path, **rules: Any) -> Config:
    """Small model, high temperature, rules that need few examples; no list is cut short on a busy machine."""
    defaults: dict[str, Any] = {
        "share": 1.0, "block_examples": 32, "least_examples": 200, "auc_margin": 0.02,
        "loss_margin": 0.02, "recall_examples": 40, "recall_margin": 1.0, "canary_share": 0.5,
        "canary_examples": 60, "settle_s": 2.0, "engagement_margin": 0.2,
        "score_shift": 3.0, "score_spread": 20.0,
    }  # fmt: skip
    config = small_config(state)
    return replace(
        config,
        serve=replace(config.serve, deadline_ms=600_000.0),
        policy=replace(PolicyConfig(), temperature=1.0),
        promotion=PromotionConfig(**defaults | rules),
    )


class PromotionRun:
    """A running system. ``show`` lets people look at lists, one after the other."""

    def __init__(self, config: Config, viewers: EvenViewers | None = None) -> None:
        self.config, self.system = config, LocalSystem(config)
        self.viewers = viewers or EvenViewers()
        self.answers: list[Answer] = []
        self.registry = Registry(Path(config.state) / "registry")

    async def start(self) -> None:
        self.system.publish(self.viewers.items())
        await self.system.start()

    async def show(self, lists: int) -> None:
        for _ in range(lists):
            user = self.viewers.user(len(self.answers))
            answer = await self.system.ask(Request(user_id=user, n=LIST))
            self.answers.append(answer)
            await self._watch(answer)
            self.system.now_ms += 500
            self.system.turn()

    async def _watch(self, answer: Answer) -> None:
        events = self.viewers.watch(answer, self.system.now_ms)
        self.system.now_ms = max([self.system.now_ms, *(e["time_ms"] for e in events)])
        taken = await self.system.service.write_api.append_events(events, SERVER)
        assert taken.count("accepted") == len(events), taken.results

    @property
    def lifecycle(self) -> Lifecycle:
        return self.system.director.promoter.lifecycle

    # --- candidates ---

    def trained(
        self,
        epochs: int = 8,
        relabel: Relabel = lambda example: example,
        began: Snapshot | None = None,
        size: ModelSize | None = None,
    ) -> TrainedCandidate:
        """A candidate after ``epochs`` passes over all steps, from initial values or a snapshot. ``relabel``
        may change its examples; ``size``: model size, if not the configured one."""
        system, config = self.system, with_size(self.config, size)
        learner = Learner(build_model(system.features, config.model))
        shard = Shard(whole_spec(config, "cand"), learner.model.read_dense())
        if began is not None:
            load_shard(shard, began)
        steps = self.steps()
        for _ in range(epochs):
            for step in steps:
                lanes = self._gradients(step, learner, shard, relabel)
                shard.learn(shard.applied + 1, step.time_ms, lanes)
        arrays, meta = shard.export()
        offsets = {cut.partition: cut.stop for step in steps for cut in step.ranges}
        return TrainedCandidate(dict(arrays), dict(meta), offsets, config.model)

    def steps(self) -> list[Step]:
        """Step records that led to the live line's current state."""
        lineage, steps = Lineage(self.system.log, MAIN, self.lifecycle.lives), list[Step]()
        while (step := lineage.record(len(steps) + 1)) is not None:
            steps.append(step)
        return steps

    def _gradients(self, step: Step, learner: Learner, shard: Shard, relabel: Relabel) -> list[LaneGradients]:
        check = ExampleCheck(learner.features, learner.model.ranker.shape.dense)
        gradients = []
        for lane, lane_examples in read_lanes(self.system.log, step, range(step.lanes), check).items():
            if not lane_examples.examples:
                gradients.append(LaneGradients(lane))
                continue
            prepared = learner.prepare([relabel(example) for example in lane_examples.examples])
            assert shard.dense is not None
            rows = shard.lookup(shard.applied, prepared.lookup.keys)
            learned = learner.learn(prepared, rows, shard.dense.values)
            gradients.append(LaneGradients(lane, learned.gradients, learned.dense, {}))
        return gradients

    def propose(
        self,
        name: str,
        made: TrainedCandidate,
        changes: Sequence[Change] = (),
        learns: bool = True,
        **about: Any,
    ) -> None:
        """Adds a changed candidate to the registry, and proposes it."""
        arrays = {name: np.array(values) for name, values in made.arrays.items()}
        for change in changes:
            change(arrays)
        fields: dict[str, Any] = {
            "name": name, "kind": "offline", "feature_set": self.system.features.digest,
            "model": digest(made.model), "config": plain_config(made.model),
            "code": "", "made_ms": self.system.now_ms, "from_ms": 0,
            "until_ms": self.system.now_ms, "log_id": self.system.log.id, "offsets": made.offsets,
        }  # fmt: skip
        provenance = Provenance(**fields | about)
        self.registry.add(provenance, arrays, made.meta, made.meta["step"])
        self.ask_for(name, learns)

    def ask_for(self, name: str, learns: bool = True) -> None:
        """Proposes a candidate of the registry."""
        provenance = self.registry.provenance(name)
        self.say(
            Candidate(
                line=name, registry=str(self.registry.folder), kind=provenance.kind, learns=learns,
                time_ms=self.system.now_ms, size=model_size_of(provenance, self.config.model),
            )
        )  # fmt: skip

    def say(self, record: Control) -> None:
        """Appends a record to ``control``."""
        self.system.log.append(CONTROL, [Append(0, b"", pack(record))])

    def wish(self, what: str, line: str = "", reason: str = "") -> None:
        self.say(OperatorRequest(what=what, line=line, reason=reason, time_ms=self.system.now_ms))


async def until(run: PromotionRun, line: str, *stages: str, lists: int = 500) -> str:
    for _ in range(lists // 5):
        await run.show(5)
        stage: str = run.lifecycle.candidates[line].stage
        if stage in stages:
            return stage
    raise AssertionError(f"{line} is {run.lifecycle.candidates[line]}")


def stamps(run: PromotionRun, since: int = 0) -> list[tuple[str, int, int]]:
    found = [answer.stamp for answer in run.answers[since:]]
    return [(stamp.line, stamp.epoch, stamp.step) for stamp in found]


def never_back(found: list[tuple[str, int, int]]) -> bool:
    newest: dict[tuple[str, int], int] = {}
    for line, epoch, step in found:
        if step < newest.get((line, epoch), 0):
            return False
        newest[line, epoch] = step
    return True
