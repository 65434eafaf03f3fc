"""A candidate whose model is half as large, or has another ranker, from proposal to live and back, in one
process."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.promotion.epoch_model import with_size
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage import snapshots
from plugins.answer_explanation.answer_check import EQUAL, AnswerChecker
from recsys.events.control_records import Decision, ModelSize
from recsys.events.records import SCORES, STEPS, Scores, Step
from recsys.model.ranker import Ranker, RankerModule, ranker_of
from recsys.process.log_consumer import readable
from serving.retrieval import retrieval_client
from tests.support.seeds import drawn
from tests.support.training.promotion_run import PromotionRun, config_of, never_back, stamps, until
from training.lines.line import MAIN, learning_digest

pytestmark = [pytest.mark.slow, pytest.mark.steady]

SIZE = ModelSize(dim=2, hidden=(8,))  # the system's has dim 4 and a layer of 16
LARGE = ModelSize(dim=48, hidden=(512, 256))
SEQUENCE = ModelSize(4, (16,), ranker="examples.sequence_model.recsys_sequence_model:SequenceRanker@1")
# What is known of it depends on the draws of requests: these let it go on, once it is made canary by hand.
RULES = {"loss_margin": 10, "auc_margin": 1, "segment_margin": 10, "score_shift": 10, "score_spread": 100}
_EXPLAINED = 3  # of a candidate's versions, the newest: it keeps two snapshots
EPOCHS = 16  # over what the system has learned once


async def started(folder: Path, shards: int = 0, **rules: Any) -> PromotionRun:
    """A system at work."""
    config = config_of(folder, **rules)
    serve = replace(config.serve, retrieval_shards=shards)
    run = PromotionRun(replace(config, serve=serve))
    await run.start()
    await run.show(40)
    return run


def make_canary(run: PromotionRun) -> None:
    run.say(Decision(line="small", verdict="promote", to="canary", share=0.5))


def dims(run: PromotionRun) -> dict[str, int]:
    """The dimension of a feature's row in each part that holds some."""
    replica = run.system.service.replica
    return {
        "shards": run.system.shards.durable[0].shard.tables["features"].config.dim - 1,
        "worker": run.system._learner.model.config.dim,
        "replica's rows": replica.rows["features"].config.dim - 1,
        "replica's model": replica.model.config.dim,
    }


def rankers(run: PromotionRun) -> set[type[RankerModule]]:
    """The ranker in each part that has one."""
    models = run.system.service.replica.model, run.system._learner.model
    return {type(model.ranker) for model in models}


def digests(run: PromotionRun, epoch: int) -> set[str]:
    return {s.config for s in readable(run.system.log, STEPS, Step) if s.epoch == epoch}


def degraded(run: PromotionRun) -> list[tuple[Any, list[str]]]:
    """Of the answers that a model had a part in: by what, and what they went without."""
    answers = [answer for answer in run.answers if answer.stamp.step]
    return [(a.stamp, a.impression.degraded) for a in answers if a.impression.degraded]


@pytest.mark.parametrize(("size", "shards"), drawn("students", 1, [(SIZE, 0), (SIZE, 2), (SEQUENCE, 0)]))
def test_a_student_takes_over_learns_on_and_is_taken_back(
    tmp_path: Path, size: ModelSize, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval_client, "LONGEST_S", 10.0)  # however busy the machine is

    async def scenario() -> None:
        run = await started(tmp_path, shards, latency=50.0, **RULES)
        run.propose("small", run.trained(EPOCHS, size=size), kind="student")
        await run.show(5)
        make_canary(run)
        assert await until(run, "small", "live") == "live"
        assert run.lifecycle.live.size == size
        began = run.lifecycle.live.base_step
        await run.show(10)
        assert set(dims(run).values()) == {size.dim}
        assert rankers(run) == {ranker_of(size.ranker)}
        assert stamps(run)[-1][:2] == (MAIN, 1) and stamps(run)[-1][2] > began
        teacher, student = (
            learning_digest(with_size(run.config, size), run.system.features) for size in (None, size)
        )
        assert (digests(run, 0), digests(run, 1)) == ({teacher}, {student})
        assert run.system.worker.counts["other_config"] == 0

        run.wish("rollback", "main/1", "it looks odd")
        await run.show(20)
        live = run.lifecycle.live
        assert (live.epoch, live.parent_epoch, live.size) == (2, 0, None)
        assert set(dims(run).values()) == {run.config.model.dim}
        assert rankers(run) == {Ranker}
        assert stamps(run)[-1][:2] == (MAIN, 2) and run.system.worker.step > live.base_step
        assert digests(run, 2) == {teacher}
        assert never_back(stamps(run))
        assert degraded(run) == []
        explained(run)
        await run.system.stop()

    asyncio.run(scenario())


def explained(run: PromotionRun) -> None:
    """Answers of each line and epoch are made again from the log, each by the model of then."""
    explainer = AnswerChecker(run.system.log, run.config, run.system.features)
    chosen = {stamp: n for n, stamp in enumerate(stamps(run)) if stamp[2]}  # one of each version
    newest = [n for (line, *_), n in chosen.items() if line == "small"]
    chosen = {s: n for s, n in chosen.items() if s[0] == MAIN or n in newest[-_EXPLAINED:]}
    assert {stamp[:2] for stamp in chosen} == {(MAIN, 0), ("small", 0), (MAIN, 1), (MAIN, 2)}
    for n in sorted(chosen.values()):
        answer = run.answers[n]
        its = explainer.explain(answer.request_id, answer.impression.user_id)
        assert its.verdict == EQUAL, f"{answer.stamp}: {its.why} {its.differences[:2]}"


def rows_of(run: PromotionRun) -> str:
    return digest_of_shards([its.shard for its in run.system.shards.durable])


async def killed(run: PromotionRun) -> None:
    """All parts that hold weights are made anew, from what stands on log and disk."""
    learned, version = rows_of(run), run.system.service.replica.version
    run.system.restart_trainer()
    assert rows_of(run) == learned
    await run.system.restart_replica()
    assert run.system.service.replica.version == version
    run.system.shadow = type(run.system.shadow)(
        run.system.log, run.config, run.system.features, run.system._clock
    )


def test_parts_that_are_killed_come_back_with_the_model_of_their_epoch(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await started(tmp_path, **RULES)
        run.propose("small", run.trained(EPOCHS, size=SIZE), kind="student")
        await run.show(8)
        await killed(run)  # in shadow
        await run.show(3)
        assert run.system.shadow.shadows["small"].model.dim == SIZE.dim
        make_canary(run)
        await run.show(2)
        await killed(run)
        await run.show(6)
        side = run.system.service.canary.variant
        assert side is not None and side.pipeline.replica.model.config.dim == SIZE.dim
        assert "small" in {line for line, _, _ in stamps(run, len(run.answers) - 6)}
        for size, moved in ((SIZE, ""), (run.config.model, "main/1")):
            if moved:
                run.wish("rollback", moved)
                await run.show(3)
            else:
                assert await until(run, "small", "live") == "live"
            await run.show(7)  # between two snapshots: the write-ahead file has some steps
            before = run.system.worker.step
            await killed(run)
            assert set(dims(run).values()) == {size.dim}
            await run.show(10)
            assert run.system.worker.step > before and set(dims(run).values()) == {size.dim}
        assert never_back(stamps(run)) and not degraded(run)
        await run.system.stop()

    asyncio.run(scenario())


def test_a_student_that_was_killed_in_shadow_says_the_same_and_says_it_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await started(tmp_path, least_examples=100_000, most_examples=100_000)
        run.propose("small", run.trained(EPOCHS, size=SIZE), kind="student")
        await run.show(12)
        first = list(readable(run.system.log, SCORES, Scores))
        assert snapshots.complete_steps(Path(run.config.state) / "snapshots", "small", 0)
        await killed(run)
        await run.show(12)
        again = list(readable(run.system.log, SCORES, Scores))
        assert again[: len(first)] == first and len(again) > len(first) > 0
        steps = [scores.step for scores in again]
        assert steps == sorted(set(steps))
        await run.system.stop()

    asyncio.run(scenario())


def test_each_model_s_speed_is_its_own_and_a_slow_one_is_given_up(tmp_path: Path) -> None:
    """The ranker of one takes many times as long; the other is as large as live's."""

    async def scenario() -> None:
        run = await started(tmp_path, least_examples=100_000, most_examples=100_000)
        made = {"same": run.trained(2), "large": run.trained(1, size=LARGE)}
        for name, its in made.items():
            run.propose(name, its, learns=False)
        await run.show(1)
        cases = run.system.director.promoter.collected
        await shown_until(run, lambda: all("rank_us" in its.figures for its in cases.values()))
        same, large = cases["same"].figures, cases["large"].figures
        assert same["rank_us"] == same["live_rank_us"]
        assert large["rank_us"] > run.config.promotion.latency * large["live_rank_us"]
        assert run.lifecycle.candidates["large"].stage == "ended"
        assert "to rank a list" in run.lifecycle.candidates["large"].why
        await run.system.stop()

    asyncio.run(scenario())


async def shown_until(run: PromotionRun, true: Callable[[], bool]) -> None:
    for _ in range(100):
        if true():
            return
        await run.show(5)
    raise AssertionError("not in 500 lists")


def test_a_larger_one_may_take_over_from_a_student(tmp_path: Path) -> None:
    """One of the configured size, while a student is live: each epoch has the model of what it began with."""

    async def scenario() -> None:
        run = await started(tmp_path)
        run.propose("small", run.trained(EPOCHS, size=SIZE), kind="student")
        run.say(Decision(line="small", verdict="promote", to="all", epoch=1))
        assert await until(run, "small", "live") == "live"
        await run.show(5)
        run.propose("usual", run.trained(EPOCHS))
        await run.show(3)
        run.say(Decision(line="usual", verdict="promote", to="all", epoch=2))
        assert await until(run, "usual", "live") == "live"
        await run.show(5)
        assert [live.size for live in run.lifecycle.lives] == [None, SIZE, None]
        assert set(dims(run).values()) == {run.config.model.dim}

        run.wish("rollback", "main/2")
        await run.show(10)
        live = run.lifecycle.live
        assert (live.epoch, live.parent_epoch, live.size) == (3, 1, SIZE)
        assert set(dims(run).values()) == {SIZE.dim}
        assert never_back(stamps(run)) and not degraded(run)
        await run.system.stop()

    asyncio.run(scenario())
