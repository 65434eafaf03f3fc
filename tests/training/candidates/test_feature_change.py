"""A running system changes its features, in one process: those that are logged, then those of the model."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.archived_log import archive_log
from experiments.promotion.kinds.features import FEATURES
from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from plugins.feature_audit.archive_audit import audit_features
from recsys.events.control_records import ALONE, ANSWERS, FOLDED, Candidate, Decision, Definition, ModelSize
from recsys.events.records import SCORES, Scores
from recsys.features.families.declared import Declared
from recsys.features.feature_set import set_text
from recsys.model.wider_set import united
from recsys.process.log_consumer import readable
from runtime.jobs.director_requests import propose
from runtime.jobs.offline_job import run as train_offline
from runtime.jobs.offline_options import OfflineOptions
from runtime.supervision import launch_plan
from runtime.supervision.launch_plan import Plan, RayPorts
from serving.service_status import status_of
from tests.support.seeds import drawn
from tests.support.training.promotion_run import PromotionRun, config_of, never_back, stamps, until
from training.candidates.registry import Registry, iso
from training.lines.line import MAIN

pytestmark = [pytest.mark.slow, pytest.mark.steady]


class Change:
    """A run whose features change to ``new``."""

    def __init__(self, run: PromotionRun, new: Declared) -> None:
        self.run, self.first = run, run.system.features
        self.new = replace(self.first, declared=new)
        self.logged = united(self.first, self.new)

    def say(self, stage: str) -> None:
        definition = Definition(
            digest="d", reads=set_text(self.new), logged=set_text(self.logged),
            before=set_text(self.first), time_ms=self.run.system.now_ms, stage=stage,
        )  # fmt: skip
        self.run.say(definition)

    async def log(self) -> None:
        """Has all parts compute and log the new features."""
        self.say(FOLDED)
        await self.run.show(5)
        self.say(ANSWERS)
        await self.run.system.restart_replica()
        self.say(ALONE)
        await self.run.show(5)

    def propose(self, line: str) -> None:
        model = self.run.config.model
        size = ModelSize(model.dim, model.hidden, set_text(self.new))
        self.run.say(
            Candidate(line=line, registry="", kind=FEATURES, time_ms=self.run.system.now_ms, size=size)
        )


async def warmed(folder: Path, **rules: Any) -> PromotionRun:
    run = PromotionRun(config_of(folder, **rules))
    await run.start()
    await run.show(40)
    return run


def blocks(run: PromotionRun, since: int = 0) -> set[str]:
    impressions = [answer.impression for answer in run.answers[since:]]
    return {i.features.feature_set for i in impressions if i.features is not None}


def explained(run: PromotionRun, answers: list[Any]) -> list[str]:
    checker = AnswerChecker(run.system.log, run.config, run.system.features)
    checks = [checker.explain(answer.request_id) for answer in answers]
    return [check.verdict + check.why for check in checks]


def archived(run: PromotionRun) -> Path:
    """The state folder, as of a stopped system, with an archive of the whole log."""
    state = Path(run.config.state)
    launch_plan.write(run.config, Plan(ray=RayPorts(*range(len(RayPorts.__struct_fields__)))))
    archive_log(run.system.log, state / "archive")
    return state


NEW = Declared(half_lives_h=(1.0, 6.0, 336.0), item_age=True, near=True)
LESS = ("all", "context", "item", "context×item", "user", "user×item", "author", "tags", "user×tags")
OTHER = Declared(entities=LESS, half_lives_h=(5.0, 336.0))  # a new half-life, and fewer rates


@pytest.mark.parametrize(("new", "by_hand"), drawn("features", 1, [(NEW, False), (OTHER, True)]))
def test_features_are_logged_learned_promoted_and_rolled_back(
    tmp_path: Path, new: Declared, by_hand: bool
) -> None:
    async def scenario() -> None:
        run = await warmed(tmp_path)
        change = Change(run, new)
        before = len(run.answers)
        await change.log()
        assert blocks(run) == {change.first.digest, change.logged.digest}
        assert blocks(run, before + 5) == {change.logged.digest}
        status = status_of(run.system.service)["features"]
        assert status == {"logged": change.logged.digest, "read": change.first.digest}
        counts = dict(run.system.worker.counts)
        await run.show(20)  # the live model goes on learning from what it reads of the wider set
        assert run.system.worker.counts["examples"] > counts["examples"] + 30
        assert run.system.worker.counts["left_out"] == 0

        change.propose("wider")
        if by_hand:  # it isn't better
            await run.show(10)
            run.say(Decision(line="wider", verdict="promote", to="canary", share=0.5))
            await run.show(20)
            run.say(Decision(line="wider", verdict="promote", to="all", epoch=1))
        else:
            assert await until(run, "wider", "canary", "ended") == "canary"
        assert await until(run, "wider", "live", "ended") == "live"
        promoted = len(run.answers)
        await run.show(20)
        status = status_of(run.system.service)["features"]
        assert status == {"logged": change.logged.digest, "read": change.new.digest}
        assert stamps(run)[-1][:2] == (MAIN, 1) and never_back(stamps(run))
        assert run.system.worker.counts["left_out"] == 0 and run.system.worker.step > 0

        run.wish("rollback", "main/1", "it looks odd")
        await run.show(20)
        status = status_of(run.system.service)["features"]
        assert status == {"logged": change.logged.digest, "read": change.first.digest}
        assert stamps(run)[-1][:2] == (MAIN, 2) and never_back(stamps(run))
        sides = [run.answers[before - 1], run.answers[before + 6], run.answers[-1]]
        sides += run.answers[promoted + 5 : promoted + 15]
        sides += [a for a in run.answers if a.stamp.line == "wider"][-1:]
        assert explained(run, sides) == [EQUAL] * len(sides)
        report = audit_features(archived(run), 1.0, 10_000)  # each in the set it was logged with
        assert report.sampled == report.equal == len(run.answers) and not report.differing
        await run.system.stop()

    asyncio.run(scenario())


def test_an_offline_candidate_reads_what_live_reads_since(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await warmed(tmp_path)
        change = Change(run, NEW)
        await change.log()
        since_ms = run.system.now_ms
        change.propose("wider")
        await run.show(20)
        run.say(Decision(line="wider", verdict="promote", to="all", epoch=1))
        assert await until(run, "wider", "live", "ended") == "live"
        await run.show(40)
        state = archived(run)
        options = OfflineOptions(state=state, from_=iso(since_ms), workers=0, epochs=1, tables="own")
        made = train_offline(options)["candidate"]
        registry = state / "registry"
        assert Registry(registry).provenance(made).feature_set == change.new.digest
        propose(run.config, run.system.log, made, registry)
        await run.show(40)
        judged = run.lifecycle.candidates[made]
        assert judged.candidate.size is not None
        assert judged.candidate.size.features == set_text(change.new)
        assert judged.stage != "ended" or "log loss is worse" in judged.why  # on its merits
        scores = [s for s in readable(run.system.log, SCORES, Scores) if s.line == made]
        assert sum(len(s.labels) for s in scores) > 20
        await run.system.stop()

    asyncio.run(scenario())
