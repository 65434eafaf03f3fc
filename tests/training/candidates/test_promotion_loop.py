"""From proposal to live and back, in one process: the parts' own classes, called one after the other."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from experiments.promotion.lifecycle import Lifecycle
from parameter_server.storage import snapshots
from recsys.events.control_records import Decision
from recsys.events.event_types import Impression, decode
from recsys.events.records import EVENTS, SCORES, STEPS, Scores, Step, TrainingExample
from recsys.process.log_consumer import readable
from runtime.reports.candidate_table import CandidateView
from tests.support.training.promotion_run import PromotionRun, config_of, never_back, stamps, until
from training.candidates.line_files import LineFiles
from training.candidates.rollback_impact import RollbackImpact, find_impact, impact_file
from training.candidates.shadow import Shadow
from training.lines.line import MAIN

pytestmark = [pytest.mark.slow, pytest.mark.steady]


async def warmed(folder: Path, **rules: Any) -> PromotionRun:
    run = PromotionRun(config_of(folder, **rules))
    await run.start()
    await run.show(40)
    return run


def test_a_better_candidate_takes_over_and_is_taken_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await warmed(tmp_path)
        run.propose("cand-1", run.trained())
        assert await until(run, "cand-1", "canary") == "canary"
        assert await until(run, "cand-1", "live") == "live"
        await run.show(10)
        live = run.lifecycle.live
        assert (live.epoch, live.parent_epoch, live.candidate) == (1, 0, "cand-1")
        assert stamps(run)[-1][:2] == (MAIN, 1)
        assert {line for line, _, _ in stamps(run)} == {MAIN, "cand-1"}
        assert never_back(stamps(run))
        # What the epoch before had learned after the candidate's step, this one has learned too.
        records = [s for s in readable(run.system.log, STEPS, Step) if s.epoch == 1]
        assert records[0].step == live.base_step + 1
        assert [s.step for s in records] == list(range(live.base_step + 1, records[-1].step + 1))

        run.wish("rollback", "main/1", "it looks odd")
        shown = len(run.answers)
        await run.show(3)
        back = run.lifecycle.live
        assert (back.epoch, back.parent_epoch, back.candidate, back.reason) == (2, 0, "", "it looks odd")
        assert all(stamp[:2] == (MAIN, 2) for stamp in stamps(run, shown + 1))
        await run.show(20)
        assert never_back(stamps(run)) and run.system.worker.step > back.base_step
        # Exactly the requests that epoch 1 answered are listed, and nothing of them is learned any more.
        found = find_impact(run.system.log, "main/1", live.time_ms, run.lifecycle.lives)
        asked = [a.request_id for a in run.answers if (a.stamp.line, a.stamp.epoch) == (MAIN, 1)]
        assert sorted(a.request_id for a in found.requests) == sorted(asked) and found.complete
        assert sum(step.learned for step in found.steps) == 0
        canary = find_impact(run.system.log, "cand-1/0", 0, run.lifecycle.lives)
        assert canary.requests  # what the canary had answered is excluded from then on, too
        left_out = sum(step.excluded for step in (*found.steps, *canary.steps))
        assert run.system.worker.counts["excluded"] == left_out > 0
        await run.system.stop()

    asyncio.run(scenario())


def noise(arrays: dict[str, Any]) -> None:
    draw = np.random.default_rng(0)
    for name in ("table/features/values", "dense/averaged"):
        arrays[name] += draw.normal(0, 1, arrays[name].shape).astype(np.float32)


def not_a_number(arrays: dict[str, Any]) -> None:
    arrays["dense/averaged"][:] = 1e30  # finite, as the registry asks; what comes of it is not


def zeros(arrays: dict[str, Any]) -> None:
    for name in list(arrays):
        if name.endswith("values") or name == "dense/averaged":
            arrays[name][:] = 0


@pytest.mark.parametrize("change", [noise, not_a_number, zeros])
def test_a_broken_candidate_is_given_up_and_answers_nobody(tmp_path: Path, change: Any) -> None:
    async def scenario() -> None:
        run = await warmed(tmp_path)
        run.propose("bad", run.trained(2), [change], learns=False)
        assert await until(run, "bad", "ended", "canary") == "ended"
        assert {line for line, _, _ in stamps(run)} == {MAIN}
        assert run.lifecycle.candidates["bad"].why
        await run.system.stop()

    asyncio.run(scenario())


def test_a_candidate_whose_ranker_fails_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Shadow.turn

    def turn(shadow: Shadow, *more: Any) -> Any:
        if shadow.line == "bad":
            raise RuntimeError("shapes differ")
        return inner(shadow, *more)

    async def scenario() -> None:
        run = await warmed(tmp_path)
        monkeypatch.setattr(Shadow, "turn", turn)
        run.propose("bad", run.trained(2))
        run.propose("fine", run.trained())
        assert await until(run, "bad", "ended") == "ended"
        assert "RuntimeError: shapes differ" in run.lifecycle.candidates["bad"].why
        assert await until(run, "fine", "canary") == "canary"
        await run.system.stop()

    asyncio.run(scenario())


def test_a_canary_that_is_taken_back_answers_nobody_after_the_next_turn(tmp_path: Path) -> None:
    """It is made canary by hand, so that it answers long enough."""

    async def scenario() -> None:
        run = await warmed(tmp_path, canary_examples=10_000)
        run.propose("odd", run.trained())
        await run.show(2)
        run.say(Decision(line="odd", verdict="promote", to="canary", share=0.5))
        await run.show(10)
        answered = {line for line, _, _ in stamps(run)}
        assert answered == {MAIN, "odd"}
        run.wish("rollback", "odd")
        shown = len(run.answers)
        await run.show(20)
        assert run.lifecycle.candidates["odd"].stage == "ended"
        assert {line for line, _, _ in stamps(run, shown + 1)} == {MAIN}
        found = find_impact(run.system.log, "odd/0", 0, run.lifecycle.lives)
        asked = sum(a.stamp.line == "odd" for a in run.answers)
        assert len(found.requests) == asked == served_by_line(run)["odd"]
        written = msgspec.json.decode(impact_file(tmp_path, "odd/0").read_bytes(), type=RollbackImpact)
        assert written.requests == found.requests  # the director lists them without being asked
        await run.system.stop()

    asyncio.run(scenario())


def test_a_canary_that_ranks_upside_down_is_taken_back_by_itself(tmp_path: Path) -> None:
    """In shadow it would be known; so it is made canary before it has scored anything."""

    def turned(lesson: TrainingExample) -> TrainingExample:
        return msgspec.structs.replace(lesson, labels=[1 - label for label in lesson.labels])

    async def scenario() -> None:
        run = await warmed(tmp_path, canary_examples=10_000)
        run.propose("odd", run.trained(relabel=turned), learns=False)
        run.say(Decision(line="odd", verdict="promote", to="canary", share=0.5))
        assert await until(run, "odd", "ended") == "ended"
        assert run.lifecycle.rolled_back == ["odd"] and run.lifecycle.candidates["odd"].why
        shown = len(run.answers)
        await run.show(5)
        assert {line for line, _, _ in stamps(run, shown)} == {MAIN}
        await run.system.stop()

    asyncio.run(scenario())


def test_one_that_does_not_learn_takes_over_and_learns_what_it_missed(tmp_path: Path) -> None:
    """It is promoted by hand: live, which learns, may be ahead of it before it has proved anything."""

    async def scenario() -> None:
        run = await warmed(tmp_path)
        run.propose("frozen", run.trained(), learns=False)
        await run.show(16)
        run.say(Decision(line="frozen", verdict="promote", to="all", epoch=1))
        assert await until(run, "frozen", "live") == "live"
        live = run.lifecycle.live
        assert live.base_step < run.system.sequencer.step - 5
        await run.show(5)
        assert run.system.epoch == 1 and run.system.worker.step == run.system.sequencer.step
        await run.system.stop()

    asyncio.run(scenario())


def served_by_line(run: PromotionRun) -> Counter[str]:
    log, found = run.system.log, Counter[str]()
    for partition in range(log.partitions(EVENTS)):
        for record in log.read(EVENTS, partition, log.begin(EVENTS, partition), 10_000):
            event = decode(record.value)
            if isinstance(event, Impression) and event.stamp:
                found[event.stamp.line] += 1
    return found


def test_people_may_keep_the_last_word(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await warmed(tmp_path, manual=True)
        run.propose("cand-1", run.trained())
        await run.show(10)
        promoter = run.system.director.promoter

        def opinion() -> str:
            return promoter.opinion(promoter.lifecycle.candidates["cand-1"])

        for _ in range(50):  # request ids are drawn, so how many lists it takes differs
            if opinion().startswith("waits for approval"):
                break
            await run.show(10)
        assert run.lifecycle.candidates["cand-1"].stage == "shadow"
        assert opinion().startswith("waits for approval: log loss gained")
        (row,) = CandidateView(run.system.log, run.config, run.system._clock).turn()
        assert row["why"] == opinion(), "who only looks is told the same"
        run.wish("approve", "cand-1")
        assert await until(run, "cand-1", "canary", "live")
        await run.system.stop()

    asyncio.run(scenario())


def test_a_snapshot_of_a_candidate_comes_after_the_scores_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shadow that is killed between them doesn't score these steps again."""
    save, seen = LineFiles.save, list[tuple[int, int]]()

    async def scenario() -> None:
        run = await warmed(tmp_path, least_examples=100_000, most_examples=100_000)

        def noted(files: LineFiles, shadow: Shadow, lifecycle: Lifecycle) -> None:
            on_log = [scores.step for scores in readable(run.system.log, SCORES, Scores)]
            seen.append((run.system.shadow._sent.get(shadow.line, 0), max(on_log, default=0)))
            save(files, shadow, lifecycle)

        monkeypatch.setattr(LineFiles, "save", noted)
        run.propose("cand-1", run.trained())
        await run.show(12)
        await run.system.stop()

    asyncio.run(scenario())
    assert len(set(seen)) > 1 and all(sent == on_log for sent, on_log in seen), seen


def test_a_shadow_that_was_killed_says_the_same_and_says_it_once(tmp_path: Path) -> None:
    async def scenario() -> list[Scores]:
        run = await warmed(tmp_path, least_examples=100_000, most_examples=100_000)
        run.propose("cand-1", run.trained())
        await run.show(12)
        first = list(readable(run.system.log, SCORES, Scores))
        folder = Path(run.config.state) / "snapshots"
        run.system.shadow = type(run.system.shadow)(
            run.system.log, run.config, run.system.features, run.system._clock
        )
        assert snapshots.complete_steps(folder, "cand-1", 0)
        await run.show(12)
        again = list(readable(run.system.log, SCORES, Scores))
        assert again[: len(first)] == first and len(again) > len(first)
        steps = [scores.step for scores in again]
        assert steps == sorted(set(steps))
        await run.system.stop()
        return again

    asyncio.run(scenario())
