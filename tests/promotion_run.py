"""A system in one process whose viewers have a plain taste, and candidates for it: some better, some broken.

What is even is mostly watched to its end, what is odd mostly not. The live line has begun to learn that; a
candidate that went over the same examples again and again has learned it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parameter_server.lanes import LaneGradients, RowGradients
from parameter_server.shard import Shard
from recsys.blueprint import build_model
from recsys.cli.one_process import OneProcess, small_config
from recsys.config import Config, digest
from recsys.events import Item
from recsys.hashing import uniform
from recsys.log import Append
from recsys.policy_config import PolicyConfig
from recsys.promotion_config import PromotionConfig
from recsys.records import CONTROL, Candidate, Control, Step, Wish, pack
from serving.request import Answer, Request
from training.learner import Learner
from training.line import MAIN, spec_of
from training.lineage import Lineage
from training.registry import Provenance, Registry, plain_config
from training.step_reader import ExampleCheck, read_lanes
from training.worker import examples_behind

ITEMS, USERS, LIST = 60, 40, 5
Change = Callable[[dict[str, Any]], None]


def config_of(state: Path, **rules: Any) -> Config:
    defaults: dict[str, Any] = {
        "share": 1.0, "block_examples": 32, "least_examples": 200, "auc_margin": 0.02,
        "loss_margin": 0.02, "canary_share": 0.5, "canary_examples": 60, "engagement_margin": 0.2,
        "score_shift": 3.0, "score_spread": 20.0,
    }  # fmt: skip
    return replace(
        small_config(state),
        policy=replace(PolicyConfig(), temperature=1.0),
        promotion=PromotionConfig(**defaults | rules),
    )


class PromotionRun:
    """A system at work. ``show`` has everybody look at some lists."""

    def __init__(self, config: Config) -> None:
        self.config, self.system, self.answers = config, OneProcess(config), list[Answer]()
        self.registry = Registry(Path(config.state) / "registry")
        self._asked = 0

    async def start(self) -> None:
        self.system.publish(
            [
                Item(
                    time_ms=1,
                    item_id=f"i{n}",
                    fields={"tags": [f"t{n % 7}"], "duration_ms": 10_000},
                )
                for n in range(ITEMS)
            ]
        )
        await self.system.start()

    async def show(self, lists: int) -> None:
        for _ in range(lists):
            user = f"u{self._asked % USERS}"
            self._asked += 1
            answer = await self.system.ask(Request(user_id=user, n=LIST))
            self.answers.append(answer)
            await self.watch(answer)
            self.system.now_ms += 500
            self.system.turn()

    async def watch(self, answer: Answer) -> None:
        system = self.system
        events = []
        for shown in answer.items:
            system.now_ms += 100
            even = int(str(shown.item_id)[1:]) % 2 == 0
            liked = uniform(0, answer.request_id, shown.rank) < (0.9 if even else 0.1)
            events.append(
                {"type": "engagement", "time_ms": system.now_ms, "request_id": answer.request_id,
                 "user_id": answer.impression.user_id, "item_id": shown.item_id, "kind": "view",
                 "watch_ms": 9_900 if liked else 500}
            )  # fmt: skip
        taken = await system.service.intake.take(events)
        assert taken.count("accepted") == len(events), taken.results

    # --- candidates ---

    def trained(self, epochs: int = 8) -> tuple[dict[str, Any], dict[str, Any], dict[int, int]]:
        """A candidate's arrays and meta, and the offsets that it has learned up to."""
        system, config = self.system, self.config
        learner = Learner(build_model(system.features, config.model))
        one = replace(config, parameter_server=replace(config.parameter_server, shards=1))
        shard = Shard(spec_of(one, "cand"), learner.model.read_dense())
        lanes = range(config.step.lanes)
        check = ExampleCheck(system.features, learner.model.ranker.shape.dense)
        lineage = Lineage(system.log, MAIN, system.director.promoter.lifecycle.lives)
        steps: list[Step] = []
        while (step := lineage.record(len(steps) + 1)) is not None:
            steps.append(step)
        number = 0
        for _ in range(epochs):
            for step in steps:
                number += 1
                gradients = []
                for lane, its in read_lanes(system.log, step, lanes, check).items():
                    if not its.examples:
                        gradients.append(LaneGradients(lane))
                        continue
                    prepared = learner.prepare(its.examples)
                    assert shard.dense is not None
                    rows = shard.lookup(shard.applied, prepared.lookup.keys)
                    learned = learner.learn(prepared, rows, shard.dense.values)
                    counts = examples_behind(prepared.lookup)
                    tables = {
                        t: RowGradients(k, g, counts[t]) for t, (k, g) in learned.gradients.items()
                    }
                    gradients.append(LaneGradients(lane, tables, learned.dense, {}))
                shard.learn(number, step.time_ms, gradients)
        arrays, meta = shard.export()
        return (
            dict(arrays),
            dict(meta),
            {r.partition: r.stop for step in steps for r in step.ranges},
        )

    def propose(
        self, name: str, made: tuple[dict[str, Any], dict[str, Any], dict[int, int]],
        change: Change = lambda arrays: None, learns: bool = True, **about: Any,
    ) -> None:  # fmt: skip
        arrays, meta, offsets = made
        arrays = {k: np.array(v) for k, v in arrays.items()}
        change(arrays)
        provenance = Provenance(
            **{
                "name": name, "kind": "offline", "feature_set": self.system.features.digest,
                "model": digest(self.config.model), "config": plain_config(self.config.model),
                "code": "test", "made_ms": self.system.now_ms, "from_ms": 0,
                "until_ms": self.system.now_ms, "log_id": self.system.log.id, "offsets": offsets,
            } | about
        )  # fmt: skip
        self.registry.add(provenance, arrays, meta, meta["step"])
        self.say(
            Candidate(
                line=name, registry=str(self.registry.folder), kind="offline", learns=learns,
                time_ms=self.system.now_ms,
            )
        )  # fmt: skip

    def say(self, record: Control) -> None:
        self.system.log.append(CONTROL, [Append(0, b"", pack(record))])

    def wish(self, what: str, line: str = "", reason: str = "") -> None:
        self.say(Wish(what=what, line=line, reason=reason, time_ms=self.system.now_ms))

    @property
    def lifecycle(self) -> Any:
        return self.system.director.promoter.lifecycle
