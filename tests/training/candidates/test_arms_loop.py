"""Arms that train lines of their own, in one process: the parts' own classes, called one after the other."""

import asyncio
import shutil
from pathlib import Path

import pytest

from experiments.promotion.kinds.arm import ARM
from experiments.promotion.kinds.line_state import ENDED
from parameter_server.shard.shard import digest_of_shards
from parameter_server.storage import snapshots
from parameter_server.table.overlay_table import OverlayTable
from recsys.events.control_records import Decision, ExperimentRequest
from recsys.events.records import CONTROL, DELTAS, EXAMPLES, Delta, pack
from recsys.log.protocol import Append
from recsys.model.model import build_model
from recsys.process.log_consumer import readable
from serving.service_status import status_of
from tests.support.training.promotion_run import PromotionRun, config_of
from training.candidates.shadow_loop import ShadowLoop
from training.continual.learner import Learner
from training.lines.line import MAIN
from training.steps.step_reader import ExampleCheck, read_lanes

pytestmark = [pytest.mark.slow, pytest.mark.steady]

TEXT = """
name: learners
layer: model
traffic: 0.9
arms:
  control: {share: 0.7, trains: weighted}
  treatment: {share: 0.3, trains: weighted, overrides: {explore: 0.5}}
"""
CONTROL_LINE, TREATMENT_LINE = "learners.control", "learners.treatment"


def wish(run: PromotionRun, what: str) -> None:
    said = ExperimentRequest(what=what, name="learners", text=TEXT)
    run.system.log.append(CONTROL, [Append(0, b"", pack(said))])


async def begun(folder: Path, lists: int = 60) -> PromotionRun:
    run = PromotionRun(config_of(folder))
    await run.start()
    await run.show(40)
    wish(run, "start")
    await run.show(lists)
    return run


def test_an_arm_is_answered_by_its_own_line(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await begun(tmp_path)
        assert {its.stage for its in run.lifecycle.candidates.values()} == {ARM}
        lines = {CONTROL_LINE, TREATMENT_LINE}
        newest = run.answers[-30:]
        for answer in newest:
            arm = answer.stamp.arms.get("learners")
            assert answer.stamp.line == (f"learners.{arm}" if arm else MAIN), answer.stamp
        assert {answer.stamp.line for answer in newest} == lines | {MAIN}
        # All learn every step, and each learns it another way.
        shadows = run.system.shadow.shadows
        steps = {its.step for its in shadows.values()}
        assert len(steps) == 1 and steps.pop() >= run.system.worker.step - 1  # they follow
        digests = {digest_of_shards([its.shard]) for its in shadows.values()}
        assert len(digests | {digest_of_shards(run.system.shards.shards)}) == 3
        status = status_of(run.system.service)["arms"]
        assert {its["ready"] for its in status.values()} == {True} and status.keys() == lines
        await run.system.stop()

    asyncio.run(scenario())


def test_memory_is_that_of_the_rows_that_were_touched(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await begun(tmp_path, lists=20)  # half of the viewers don't come again
        for line, its in run.system.shadow.shadows.items():
            touched = touched_since(run, line)
            for name, table in its.shard.tables.items():
                assert isinstance(table, OverlayTable)
                assert 0 < table.changed <= len(touched[name]), (line, name)
                # Of the few items all may be shown again; who doesn't come again has rows in the others.
                assert name == "items" or table.changed < len(table), (line, name)
        assert run.system.shadow.own_rows > 0
        await run.system.stop()

    def touched_since(run: PromotionRun, line: str) -> dict[str, set[int]]:
        """The keys of all examples since a line began, by table."""
        deltas = readable(run.system.log, DELTAS, Delta)
        first = min(delta.step for delta in deltas if delta.line == line)
        learner = Learner(build_model(run.system.features, run.config.model))
        check = ExampleCheck(run.system.features, learner.model.ranker.shape.dense)
        found: dict[str, set[int]] = {"features": set(), "items": set(), "users": set()}
        for step in run.steps()[first - 1 :]:
            lanes = read_lanes(run.system.log, step, range(step.lanes), check).values()
            for its in (lane.examples for lane in lanes if lane.examples):
                for table, keys in learner.prepare(its).lookup.keys.items():
                    found[table] |= set(keys.tolist())
        return found

    asyncio.run(scenario())


def test_a_killed_part_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await begun(tmp_path)
        before = run.system.shadow
        while before.turn():
            pass
        again = ShadowLoop(run.system.log, run.config, run.system.features, run.system._clock)
        while again.turn():
            pass
        assert again.shadows.keys() == before.shadows.keys()
        for line, its in before.shadows.items():
            other = again.shadows[line]
            assert other.step == its.step
            assert digest_of_shards([other.shard]) == digest_of_shards([its.shard])
            assert its.learner.export().keys() == other.learner.export().keys() > set()
            for name, array in its.learner.export().items():
                assert (other.learner.export()[name] == array).all(), name
        await run.system.stop()

    asyncio.run(scenario())


def test_live_answers_an_arm_until_its_line_is_there_and_while_it_stands_still(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = PromotionRun(config_of(tmp_path))
        await run.start()
        await run.show(40)
        turn, run.system.shadow.turn = run.system.shadow.turn, lambda: 0  # type: ignore[method-assign]
        wish(run, "start")
        await run.show(20)
        assert run.lifecycle.arms and {a.stamp.line for a in run.answers} == {MAIN}
        assert not any("model" in answer.degraded for answer in run.answers[-20:])
        run.system.shadow.turn = turn  # type: ignore[method-assign]
        await run.show(20)
        assert run.answers[-1].stamp.line != MAIN or run.answers[-2].stamp.line != MAIN
        run.system.shadow.turn = lambda: 0  # type: ignore[method-assign]
        await run.show(5)
        run.system.now_ms += 1_000 * int(run.config.serve.stale_s)
        await run.show(10)
        assert {answer.stamp.line for answer in run.answers[-8:]} == {MAIN}
        await run.system.stop()

    asyncio.run(scenario())


def test_lines_end_with_their_experiment(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await begun(tmp_path)
        wish(run, "stop")
        await run.show(3)
        assert {its.stage for its in run.lifecycle.candidates.values()} == {ENDED}
        assert not run.system.shadow.shadows and not run.system.service.canary.variants.all
        assert run.answers[-1].stamp.line == MAIN
        assert not any(
            name.startswith("shadow/")
            for p in range(run.config.log.partitions)
            for name in run.system.log.holds(EXAMPLES, p)
        )
        await run.system.stop()

    asyncio.run(scenario())


def test_what_an_ended_line_kept_goes_once_no_answer_of_it_is_on_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        run = await begun(tmp_path)
        wish(run, "stop")
        await run.show(3)
        folder, system = Path(run.config.state) / "snapshots", run.system
        ended_ms = system.now_ms

        def part_after(hours: float) -> None:
            now_ms = ended_ms + round(3_600_000 * hours)
            ShadowLoop(system.log, run.config, system.features, lambda: now_ms)

        def there() -> dict[str, int]:
            lines = (CONTROL_LINE, TREATMENT_LINE)
            return {line: len(snapshots.complete_steps(folder, line, 0)) for line in lines}

        hours, before = run.config.log.retention_hours, there()
        part_after(hours - 1)
        assert there() == before and min(before.values()) > 0
        remove = shutil.rmtree

        def killed_after_one_file(path: Path, **_: bool) -> None:
            next(file for file in Path(path).rglob("*") if file.is_file()).unlink()
            raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr(snapshots.shutil, "rmtree", killed_after_one_file)
            with pytest.raises(KeyboardInterrupt):
                part_after(hours + 1)
        assert snapshots.shutil.rmtree is remove
        # Nothing bears a name that isn't whole; what the kill left goes with the part's next start.
        assert there() == before | {CONTROL_LINE: 0} and list((folder / CONTROL_LINE).iterdir())
        assert snapshots.latest(folder, TREATMENT_LINE, 0).reasons == []
        part_after(hours + 1)
        assert {path.name for path in folder.iterdir()} == {MAIN}
        await system.stop()

    asyncio.run(scenario())


def test_an_experiment_whose_line_is_lost_is_broken(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await begun(tmp_path)
        ended = Decision(line=TREATMENT_LINE, verdict="hold", final=True, why="its disk is gone")
        run.system.log.append(CONTROL, [Append(0, b"", pack(ended))])
        await run.show(5)
        assert not run.lifecycle.arms
        stand = run.system.director.experiments.newest.states["learners"]
        assert stand.state == "stopped"
        assert stand.why == "broken: the line learners.treatment ended: its disk is gone"
        assert run.answers[-1].stamp.line == MAIN
        await run.system.stop()

    asyncio.run(scenario())


def test_a_line_of_an_arm_is_not_taken_back_by_itself(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = await begun(tmp_path)
        run.wish("rollback", TREATMENT_LINE, "why not")
        await run.show(2)
        assert set(run.lifecycle.arms) == {CONTROL_LINE, TREATMENT_LINE}
        assert not run.system.director.promoter._requests
        await run.system.stop()

    asyncio.run(scenario())
