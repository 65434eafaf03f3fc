"""`recsys study reaction`: what a reaction to drift, and rehearsal, gain in the closed loop."""

import gc
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Annotated, Any, Final

import numpy as np
import typer
from scipy.stats import t as student

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.drift.story_loop import (
    DAY_MS,
    ORACLES,
    PLAIN,
    REACTS,
    REHEARSES,
    SAME_DAYS,
    STORIES,
    StoryLoop,
    figures,
    spans,
    world_of,
)

_LEVEL: Final = 0.95


def measure(
    seed: int, names: Sequence[str], arms: Sequence[str], requests_per_s: float, step_examples: int
) -> dict[str, Any]:
    """Figures of each story and arm. All share one loop until the stories part, then each goes on in a
    process of its own."""
    world = world_of(STORIES["none"], seed, requests_per_s)
    until_ms = world.start_ms + round(SAME_DAYS * DAY_MS)
    loop = StoryLoop(world, until_ms, step_examples)
    loop.run(world.start_ms, until_ms)
    gc.freeze()  # what the processes share isn't searched again by each
    runs = dict[str, Any]()
    for name in names:
        run: dict[str, Any] = {"seed": seed}
        for arm in arms:
            if arm == REHEARSES and name != "a_b_a":
                continue
            # Without an alarm the arm that reacts is the plain one.
            same = arm == REACTS and not run[PLAIN]["alarms"]
            run[arm] = run[PLAIN] if same else _forked(partial(_rest, loop, name, arm, until_ms))
        runs[name] = run
    return runs


def _rest(loop: StoryLoop, name: str, arm: str, from_ms: int) -> dict[str, Any]:
    story, before = STORIES[name], len(loop.loop.found)
    loop.world = world_of(story, loop.world.seed, loop.world.requests_per_s)
    times = [loop.world.start_ms + round(d * DAY_MS) for d in (*story.changes, story.until)]
    loop.begin(arm)
    loop.run(from_ms, times[0])
    for change_ms, until_ms in pairwise(times):
        loop.tell(arm, change_ms)
        loop.run(change_ms, until_ms)
    return {
        "spans": figures(loop, story), "alarms_before": before,
        "alarms": [(at_ms - times[0], kind, what) for at_ms, kind, what in loop.loop.found[before:]],
        "lists": len(loop.watched), "examples": loop.loop.seen,
        "mean_rate": float(np.mean(loop.loop.rates)) if loop.loop.rates else 1.0,
        "rehearsed_share": [round(s.share, 3) for _, s in loop.loop.strengths],
    }  # fmt: skip


def _forked(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of work on a copy of this process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def send(pipe: Connection) -> None:
        pipe.send(work())

    process = context.Process(target=send, args=(sender,))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        raise RuntimeError("an arm of the study has ended without a result") from None
    finally:
        process.join()
    return result


def compare(runs: list[dict[str, Any]], arm: str, span: str, figure: str) -> dict[str, float]:
    """Mean of the arm's figure less plain's over the seeds, with its t interval."""
    differences = [r[arm]["spans"][span][figure] - r[PLAIN]["spans"][span][figure] for r in runs]
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return {"mean": mean, "half": float("nan")}
    error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    return {"mean": mean, "half": float(student.ppf((1 + _LEVEL) / 2, len(runs) - 1)) * error}


def summary(story_name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Plain figures, and each arm's difference, by span."""
    names = [name for name, _, _ in spans(STORIES[story_name], 0)]
    arms = [arm for arm in (REACTS, *ORACLES, REHEARSES) if arm in runs[0]]
    kinds = ("auc", "log_loss", "watch_s", "utility")
    table = dict[str, dict[str, Any]]()
    for span in names:
        plain = {k: float(np.mean([r[PLAIN]["spans"][span][k] for r in runs])) for k in kinds}
        table[span] = {PLAIN: plain}
        for arm in arms:
            table[span][arm] = {k: compare(runs, arm, span, k) for k in kinds}
    return {"story": story_name, "table": table, "runs": runs}


@study_command
def reaction(
    seeds: Annotated[int, typer.Option(help="Worlds.")] = 5,
    story: Annotated[list[str] | None, typer.Option(help="One story; by default all.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Beside plain; by default all.")] = None,
    step_examples: Annotated[int, typer.Option(help="Examples of a step.")] = 128,
    requests_per_s: Annotated[float, typer.Option(help="Requests a second.")] = 0.1,
) -> Iterator[dict[str, Any]]:
    """Effect of reactions to drift, and of rehearsal, on viewers who watch the system's own lists."""
    check_at_least(1, seeds=seeds)
    names = story or list(STORIES)
    for name in names:
        if name not in STORIES:
            raise ValueError(f"--story is {name!r}, expected one of {', '.join(STORIES)}")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    arms = [PLAIN, *(arm or (REACTS, *ORACLES, REHEARSES))]
    for seed in range(seeds):
        for name, run in measure(seed, names, arms, requests_per_s, step_examples).items():
            runs[name].append(run)
        gc.unfreeze()
        yield {"stories": [summary(name, runs[name]) for name in names]}
    for name in names:
        _print(summary(name, runs[name]))


def _print(story: dict[str, Any]) -> None:
    typer.echo(story["story"])
    for span, arms in story["table"].items():
        for arm, row in arms.items():
            if arm == PLAIN:
                typer.echo(
                    f"  {span:>7} {arm:>10} " + json.dumps({k: round(v, 4) for k, v in row.items()})
                )
            else:
                cells = (f"{k} {v['mean']:+.4f} ± {v['half']:.4f}" for k, v in row.items())
                typer.echo(f"  {span:>7} {arm:>10} " + ", ".join(cells))
