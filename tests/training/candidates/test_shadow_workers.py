"""Several shadow parts share the lines, which learn and score as in one."""

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from experiments.promotion.kinds.line_state import LineState
from parameter_server.shard.shard import digest_of_shards
from recsys.config.system_config import Config
from recsys.events.control_records import Candidate, Decision, ExperimentRequest
from recsys.events.hashing import partition_of
from recsys.events.records import CONTROL, EXAMPLES, SCORES, Scores, pack
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.process.log_consumer import readable
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Stop
from recsys.process.worker_share import WHOLE, Share, leased
from tests.support.training.promotion_run import PromotionRun, config_of
from tests.support.training.small_feed import (
    FEATURES,
    PARTITIONS,
    append_examples,
    example,
    toy_config,
    toy_log,
)
from training.candidates import shadow_loop
from training.candidates.shadow_loop import PART, ShadowLoop

LINES = [f"cand-{n}" for n in range(9)]


def say(log: Log, *records: msgspec.Struct) -> None:
    log.append(CONTROL, [Append(0, b"", pack(record)) for record in records])


def shadow(log: MemoryLog, state: Path, share: Share) -> ShadowLoop:
    return ShadowLoop(log, replace(toy_config(), state=str(state)), FEATURES, lambda: 0, share=share)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_line_has_one_worker_and_the_first_unlearns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    log, replays = toy_log(), list[int]()
    append_examples(log, [example(n) for n in range(10)])
    say(log, *(Candidate(line=line, registry="") for line in LINES))
    worked: list[list[str]] = [[] for _ in range(workers)]
    for index in range(workers):
        loop = shadow(log, tmp_path, Share(index, workers))

        def work(state: LineState, newest: int, index: int = index) -> int:
            worked[index].append(state.line)
            log.hold(f"{PART}/{state.line}", EXAMPLES, 0, 0)
            return 1

        def unlearn(lifecycle: object, index: int = index) -> int:
            replays.append(index)
            return 0

        monkeypatch.setattr(loop, "_work", work)
        monkeypatch.setattr(loop.replay, "turn", unlearn)
        loop.turn()
    assert sorted(line for lines in worked for line in lines) == LINES and all(worked)
    for index, lines in enumerate(worked):
        assert {partition_of(line, PARTITIONS) % workers for line in lines} == {index}
    assert replays == [0]

    first, last = worked[0][0], worked[-1][-1]
    ended = [Decision(line=line, verdict="hold", final=True, why="bad") for line in (first, last)]
    say(log, *ended)
    shadow(log, tmp_path, Share(workers - 1, workers))
    assert f"{PART}/{last}" not in log.holds(EXAMPLES, 0)
    assert (f"{PART}/{first}" in log.holds(EXAMPLES, 0)) is (workers > 1), "it is of another worker"


def test_lines_that_another_process_has_are_refused(tmp_path: Path) -> None:
    config = replace(Config(), state=str(tmp_path))
    log = open_log(config)
    create_topics(log, config)
    log.close()
    with leased(tmp_path, PART, [3]):
        for share in (WHOLE, Share(1, 2)):
            with pytest.raises(RuntimeError, match="partition 3 of shadow belongs to another"):
                shadow_loop.run(config, Stop(), share)


class Workers:
    """Shadow parts in place of the one of a run, each with a turn."""

    def __init__(self, run: PromotionRun, workers: int) -> None:
        system = run.system
        self.loops = [
            ShadowLoop(system.log, run.config, system.features, system._clock, share=Share(index, workers))
            for index in range(workers)
        ]

    def turn(self) -> int:
        return sum(loop.turn() for loop in self.loops)


async def followed(folder: Path, workers: tuple[int, ...]) -> tuple[dict[str, str], list[Scores]]:
    """Digests of the lines of two candidates and two arms, and all scores; so many workers at a time, who are
    killed before there are others."""
    text = "name: a\nlayer: model\ntraffic: 0.6\narms:\n  b: {share: 0.5, trains: weighted}\n"
    text += "  c: {share: 0.5, trains: weighted, overrides: {explore: 0.5}}\n"
    run = PromotionRun(config_of(folder))
    await run.start()
    await run.show(40)
    say(run.system.log, ExperimentRequest(what="start", name="a", text=text))
    run.propose("cand-1", run.trained())
    for count in workers:
        parts = Workers(run, count)
        run.system.shadow = parts  # type: ignore[assignment]
        await run.show(15)
    while parts.turn():
        pass
    lines = [(line, each) for loop in parts.loops for line, each in loop.shadows.items()]
    assert len(lines) == len(dict(lines)) == 3
    digests = {line: digest_of_shards([each.shard]) for line, each in lines}
    scores = list(readable(run.system.log, SCORES, Scores))
    await run.system.stop()
    return digests, scores


@pytest.mark.slow
def test_lines_are_those_of_one_worker_after_kills_and_other_numbers_of_workers(tmp_path: Path) -> None:
    alone, scores = asyncio.run(followed(tmp_path / "a", (1, 1, 1)))
    shared, shared_scores = asyncio.run(followed(tmp_path / "b", (2, 3, 2)))
    assert shared == alone
    places = [(each.line, each.step) for each in shared_scores]
    assert len(set(places)) == len(places) > 5
    by_place = {(each.line, each.step): (each.candidate, each.labels) for each in scores}
    assert {p: (e.candidate, e.labels) for p, e in zip(places, shared_scores, strict=True)} == by_place
