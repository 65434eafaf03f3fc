"""What was live guards against what replaced it, in one process: the parts' own classes, called in turn."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from experiments.promotion.kinds.guard import GuardState
from experiments.promotion.kinds.line_state import LineState
from parameter_server.shard.shard import Shard
from parameter_server.storage import snapshots
from parameter_server.storage.mmap_shard import open_mmap_shard
from recsys.events.control_records import Decision
from recsys.events.records import EXAMPLES, SCORES, Scores
from recsys.log.protocol import LogLost
from recsys.model.model import build_model
from recsys.process.log_consumer import readable
from runtime.reports.candidate_table import CandidateView
from tests.support.seeds import drawn
from tests.support.training.promotion_run import LIST, Change, PromotionRun, config_of
from training.candidates.line_start import LineStart
from training.candidates.rollback_impact import RollbackImpact, find_impact, impact_file
from training.candidates.shadow import Shadow
from training.candidates.shadow_loop import ShadowLoop
from training.continual.learner import Learner
from training.lines.line import MAIN, whole_spec

pytestmark = [pytest.mark.slow, pytest.mark.steady]
GUARD = "guard-1"


async def promoted(
    folder: Path, changes: tuple[Change, ...] = (), delta_format: str = "fp16", **rules: Any
) -> PromotionRun:
    """A good candidate is live since a moment, by hand; what was written as its epoch's beginning may be
    changed: then it has turned bad between canary and live."""
    config = config_of(folder, **rules)
    rows = replace(config.parameter_server, delta_format=delta_format)
    run = PromotionRun(replace(config, parameter_server=rows))
    await run.start()
    await run.show(40)
    run.propose("cand-1", run.trained())
    files = run.system.shadow._files
    files._write_first_snapshot = turned(run, files._write_first_snapshot, changes)  # type: ignore[method-assign]
    await run.show(5)
    run.say(Decision(line="cand-1", verdict="promote", to="all", epoch=1, why="it looks good"))
    while run.lifecycle.live.epoch == 0:  # type: ignore[union-attr]
        await run.show(1)
    return run


def turned(run: PromotionRun, become: Callable[..., None], changes: tuple[Change, ...]) -> Any:
    folder = Path(run.config.state) / "snapshots"

    def worse(shadow: Shadow, epoch: int) -> None:
        become(shadow, epoch)
        its = snapshots.latest(folder, MAIN, epoch).snapshot
        assert its is not None
        for part in range(its.parts):
            arrays = {name: np.array(values) for name, values in its.read(part).items()}
            for change in changes:
                change(arrays)
            where = (folder, MAIN, epoch, its.step, part, its.parts)
            snapshots.write_part(*where, arrays, its.meta(part))

    return worse


def guard_of(run: PromotionRun) -> LineState:
    return run.lifecycle.candidates[GUARD]


def noise(arrays: dict[str, Any]) -> None:
    arrays["table/features/values"] += draws(arrays["table/features/values"].shape)
    if "dense/values" in arrays:
        for name in ("dense/values", "dense/averaged"):
            arrays[name] += draws(arrays[name].shape)


def draws(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


def forgotten(arrays: dict[str, Any]) -> None:
    for name in ("table/features/values", "dense/values", "dense/averaged"):
        if name in arrays:
            arrays[name][:] = 0


def no_number(arrays: dict[str, Any]) -> None:
    if "dense/averaged" in arrays:
        arrays["dense/averaged"][:] = np.nan


@pytest.mark.parametrize("change", drawn("bad lines", 1, [noise, forgotten]))
def test_a_line_that_turns_bad_once_it_is_live_is_taken_back_by_itself(
    tmp_path: Path, change: Change
) -> None:
    async def scenario() -> None:
        run = await promoted(tmp_path, (change,))
        live = run.lifecycle.live
        while run.lifecycle.live is live and len(run.answers) < 400:
            await run.show(1)
        back = run.lifecycle.live
        assert (back.epoch, back.parent_epoch, back.candidate, back.guarded) == (2, 0, "", False)
        assert back.reason.startswith(f"{GUARD}: live's ") and guard_of(run).stage == "ended"
        bad = [a for a in run.answers if (a.stamp.line, a.stamp.epoch) == (MAIN, 1)]
        shown = len(bad) * LIST
        assert 0 < shown <= 250, f"{shown} items were shown by it"  # 170; 30 users are needed at least
        # Exactly the requests that it answered are listed, and nothing of them is learned any more.
        await run.show(30)
        assert run.answers[-1].stamp.epoch == 2 and run.lifecycle.live is back
        assert [its for its in run.lifecycle.active if isinstance(its, GuardState)] == []
        bad = [a for a in run.answers if (a.stamp.line, a.stamp.epoch) == (MAIN, 1)]
        found = find_impact(run.system.log, "main/1", live.time_ms, run.lifecycle.lives)
        assert sorted(a.request_id for a in found.requests) == sorted(a.request_id for a in bad)
        assert found.complete and sum(step.learned for step in found.steps) == 0
        written = msgspec.json.decode(impact_file(tmp_path, "main/1").read_bytes(), type=RollbackImpact)
        assert written.requests == found.requests
        assert not impact_file(tmp_path, f"{GUARD}/0").exists()
        assert not (tmp_path / "snapshots" / GUARD).exists()
        assert f"shadow/{GUARD}" not in run.system.log.holds(EXAMPLES, 0)
        await run.system.stop()

    asyncio.run(scenario())


def test_a_line_that_predicts_no_numbers_is_taken_back_after_its_first_lists(tmp_path: Path) -> None:
    """Such lists are of what is popular, so that viewers see nothing odd."""

    async def scenario() -> None:
        # As fp32, for with fp16 a parameter that isn't finite is published as a large one.
        run = await promoted(tmp_path, (no_number,), "fp32")
        live = run.lifecycle.live
        while run.lifecycle.live is live and len(run.answers) < 100:
            await run.show(1)
        back = run.lifecycle.live
        assert (back.epoch, back.parent_epoch) == (2, 0)
        assert back.reason.startswith(f"{GUARD}: ")
        assert back.reason.endswith("of live's predictions aren't finite")
        bad = [a for a in run.answers if (a.stamp.line, a.stamp.epoch) == (MAIN, 1)]
        assert 0 < len(bad) <= 5 and all(a.degraded == ("rank",) for a in bad)
        await run.system.stop()

    asyncio.run(scenario())


def test_a_good_one_stays_over_the_guarded_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await promoted(tmp_path, guard_examples=600)
        view = CandidateView(run.system.log, run.config, run.system._clock)
        await run.show(60)
        row = view.turn()[-1]
        assert (row["line"], row["kind"], row["stage"]) == (GUARD, "guard", "shadow")
        assert "of 600 examples compared, nothing against what is live" in row["why"]
        assert row["examples"] > 100 and row["loss gained"] < 0  # live is better than what it replaced
        held = run.system.log.holds(EXAMPLES, 0)
        assert f"shadow/{GUARD}" in held
        for _ in range(40):
            if guard_of(run).stage != "shadow":
                break
            await run.show(10)
        assert run.lifecycle.live.epoch == 1 and guard_of(run).stage == "ended"
        assert "examples compared, nothing against what is live" in guard_of(run).why
        await run.show(2)
        assert GUARD not in run.system.shadow.shadows
        assert f"shadow/{GUARD}" not in run.system.log.holds(EXAMPLES, 0)
        await run.system.stop()

    asyncio.run(scenario())


def test_a_guard_is_what_the_line_would_have_been(tmp_path: Path) -> None:
    """It learns the new epoch's records after an earlier snapshot as the old epoch learned its own."""

    async def scenario() -> None:
        run = await promoted(tmp_path)
        await run.show(5)
        folder, system = tmp_path / "snapshots", run.system
        first, last = (snapshots.complete_steps(folder, MAIN, 0)[n] for n in (-3, -1))
        assert first < last

        def at(step: int) -> Shard:
            found = snapshots.latest(folder, MAIN, 0, step).snapshot
            assert found is not None
            dense = build_model(system.features, run.config.model).read_dense()
            return open_mmap_shard(whole_spec(run.config, GUARD), dense, found, step)

        learner = Learner(build_model(system.features, run.config.model))
        guard = Shadow(system.log, run.config, learner, GUARD, at(first), run.lifecycle.lives)
        while guard.step < last:
            assert guard.turn() is not None
        ours, theirs = (in_order(shard) for shard in (guard.shard, at(last)))
        assert ours.keys() == theirs.keys()
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name], name)
        await system.stop()

    asyncio.run(scenario())


def in_order(shard: Shard) -> dict[str, Any]:
    """What a shard holds of rows and dense parameters, rows by their keys."""
    arrays, _ = shard.export()
    order = np.argsort(arrays["table/features/keys"])
    rows = {
        n: v[order] for n, v in arrays.items() if n.startswith("table/features/") and len(v) == len(order)
    }
    return rows | {n: v for n, v in arrays.items() if n.startswith("dense/")}


def test_a_shadow_that_was_killed_says_the_same_of_a_guard_and_says_it_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await promoted(tmp_path)
        await run.show(20)
        first = [s for s in readable(run.system.log, SCORES, Scores) if s.line == GUARD]
        assert first and {s.against for s in first} == {(MAIN, 1)}
        before = run.system.shadow.shadows[GUARD]
        run.system.shadow = type(run.system.shadow)(
            run.system.log, run.config, run.system.features, run.system._clock
        )
        await run.show(20)
        after = run.system.shadow.shadows[GUARD]
        again = [s for s in readable(run.system.log, SCORES, Scores) if s.line == GUARD]
        assert again[: len(first)] == first and len(again) > len(first)
        steps = [scores.step for scores in again]
        assert steps == sorted(set(steps)) and after.step > before.step
        await run.system.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error, what",
    [
        (snapshots.NoSnapshot("main of epoch 0", []), "NoSnapshot: "),
        (LogLost("the log no longer has the examples of step 3"), "LogLost: the log no longer has"),
    ],
)
def test_a_guard_that_cannot_be_loaded_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, what: str
) -> None:
    def fails(*_: Any) -> None:
        raise error

    async def scenario() -> None:
        monkeypatch.setattr(LineStart, "_from_live", fails)
        run = await promoted(tmp_path)
        await run.show(3)
        assert (run.lifecycle.live.epoch, guard_of(run).stage) == (1, "ended")  # type: ignore[union-attr]
        assert guard_of(run).why.startswith(f"the former live line can't take over: {what}")
        assert nothing_kept(run, GUARD)
        await run.system.stop()

    asyncio.run(scenario())


def test_nothing_is_kept_of_a_guard_that_is_refused_once_it_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise LogLost("gone")

    async def scenario() -> None:
        run = await promoted(tmp_path)
        await run.show(3)
        assert not nothing_kept(run, GUARD) and (tmp_path / "snapshots" / GUARD).exists()
        monkeypatch.setattr(Shadow, "turn", fails)
        await run.show(3)
        assert guard_of(run).why == "the former live line can't take over: LogLost: gone"
        assert nothing_kept(run, GUARD) and not (tmp_path / "snapshots" / GUARD).exists()
        await run.system.stop()

    asyncio.run(scenario())


def test_the_log_is_let_go_of_a_candidate_that_ended_while_the_shadow_was_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = PromotionRun(config_of(tmp_path))
        await run.start()
        await run.show(40)
        run.propose("cand-1", run.trained())
        await run.show(3)
        assert "shadow/cand-1" in run.system.log.holds(EXAMPLES, 0)
        run.say(Decision(line="cand-1", verdict="hold", final=True, why="by hand"))
        run.system.shadow = ShadowLoop(run.system.log, run.config, run.system.features, run.system._clock)
        assert nothing_kept(run, "cand-1")
        await run.system.stop()

    asyncio.run(scenario())


def nothing_kept(run: PromotionRun, line: str) -> bool:
    """Whether a line is at work nowhere, and the log keeps nothing for it."""
    log = run.system.log
    held = {name for p in range(log.partitions(EXAMPLES)) for name in log.holds(EXAMPLES, p)}
    return line not in run.system.shadow.shadows and f"shadow/{line}" not in held


def test_a_person_or_another_promotion_ends_the_guard(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await promoted(tmp_path)
        await run.show(5)
        run.propose("cand-2", run.trained(2))
        await run.show(3)
        run.say(Decision(line="cand-2", verdict="promote", to="all", epoch=2, why="by hand"))
        while run.lifecycle.live.epoch == 1:
            await run.show(1)
        await run.show(3)
        assert guard_of(run).stage == "ended"
        assert {its.line for its in run.lifecycle.active if isinstance(its, GuardState)} == {"guard-2"}
        assert set(run.system.shadow.shadows) == {"guard-2"}
        run.wish("rollback", "main/2", "it looks odd")
        await run.show(5)
        live = run.lifecycle.live
        assert (live.epoch, live.parent_epoch, live.reason) == (3, 1, "it looks odd")
        assert run.lifecycle.active == [] and run.system.shadow.shadows == {}
        await run.system.stop()

    asyncio.run(scenario())
