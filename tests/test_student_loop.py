"""A candidate whose model is half as large, from proposal to live and back, in one process."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.epoch_model import sized
from parameter_server import snapshots
from recsys.cli.explainer import EQUAL, Explainer
from recsys.cli.promotion_run import PromotionRun, config_of
from recsys.consumer import readable
from recsys.records import SCORES, STEPS, Decision, ModelSize, Scores, Step
from tests.test_promotion_loop import never_back, stamps, until
from training.line import MAIN, learning_digest

pytestmark = pytest.mark.slow

SIZE = ModelSize(dim=2, hidden=(8,))  # the system's has dim 4 and a layer of 16


def dims(run: PromotionRun) -> dict[str, int]:
    """The width of a feature's row in each part that holds some."""
    shards = run.system.shards.durable
    return {
        "shards": shards[0].shard.tables["features"].config.dim - 1,
        "worker": run.system._learner.model.config.dim,
        "replica rows": run.system.service.replica.rows["features"].config.dim - 1,
        "replica model": run.system.service.replica.model.config.dim,
    }


def digests(run: PromotionRun, epoch: int) -> set[str]:
    return {s.config for s in readable(run.system.log, STEPS, Step) if s.epoch == epoch}


def degraded(run: PromotionRun) -> list[list[str]]:
    """Of the answers that a model had a part in."""
    answers = [answer for answer in run.answers if answer.stamp.step]
    return [its.impression.degraded for its in answers if its.impression.degraded]


async def proposed(folder: Path, **rules: Any) -> PromotionRun:
    config = config_of(folder, **rules)
    unhurried = replace(config.serve, deadline_ms=600_000.0)
    run = PromotionRun(replace(config, serve=unhurried))
    await run.start()
    await run.show(40)
    run.propose("small", run.trained(16, size=SIZE), kind="student")
    return run


def test_a_student_takes_over_learns_on_and_is_taken_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await proposed(tmp_path)
        assert await until(run, "small", "canary") == "canary"
        assert run.system.shadow.shadows["small"].model.dim == SIZE.dim
        assert await until(run, "small", "live") == "live"
        assert run.lifecycle.live.size == SIZE
        began = run.lifecycle.live.since
        await run.show(10)
        assert set(dims(run).values()) == {SIZE.dim}
        assert stamps(run)[-1][:2] == (MAIN, 1) and stamps(run)[-1][2] > began
        features = run.system.features
        teacher = learning_digest(run.config, features)
        student = learning_digest(sized(run.config, SIZE), features)
        assert (digests(run, 0), digests(run, 1)) == ({teacher}, {student})
        assert run.system.worker.counts["other_config"] == 0

        run.wish("rollback", "main/1", "it looks odd")
        await run.show(20)
        live = run.lifecycle.live
        assert (live.epoch, live.of, live.size) == (2, 0, None)
        assert set(dims(run).values()) == {run.config.model.dim}
        assert stamps(run)[-1][:2] == (MAIN, 2) and run.system.worker.step > live.since
        assert digests(run, 2) == {teacher}
        assert never_back(stamps(run))
        assert degraded(run) == []
        await run.system.stop()

    asyncio.run(scenario())
