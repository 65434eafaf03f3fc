"""`recsys study broken`: candidates broken in ten ways, five seeds each, all judged on one system's traffic,
to see how far each gets and which users it answers.

The system runs in one process: the parts' own classes, people of the simulated world, default rules. A
candidate is trained well and then broken; so one that is broken in its retrieval alone may rank better than
live.
"""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from msgspec.structs import replace as changed

from benchmarks.harness.commands import study_command
from benchmarks.harness.local_system import START_MS
from benchmarks.studies.promotion.promotion_run import (
    Change,
    PromotionRun,
    TrainedCandidate,
    WorldViewers,
    config_of,
)
from examples.short_video.world import World
from recsys.config.promotion_config import PromotionConfig
from recsys.config.system_config import Config, ModelConfig
from recsys.events.hashing import uniform
from recsys.events.records import TrainingExample
from recsys.model.model import Model
from training.candidates.rollback_impact import find_impact
from training.lines.line import MAIN

_WARM: Final = 700  # lists before anything is proposed
_EPOCHS: Final = 3
Arrays = dict[str, Any]


@dataclass(frozen=True)
class Broken:
    """One way to break a candidate. ``change`` gets the arrays, a generator, and the model's layout."""

    name: str
    change: Callable[[Arrays, np.random.Generator, "Layout"], None]
    labels: str = "true"  # training labels: true, shuffled, turned


class Layout:
    """Slices of the parameters in the flat dense vector."""

    def __init__(self, model: Model) -> None:
        self._at: dict[str, slice] = {}
        start = 0
        for name, parameter in model.named_parameters():
            self._at[name] = slice(start, start + parameter.numel())
            start += parameter.numel()

    def of(self, arrays: Arrays, name: str) -> list[Any]:
        """Views of a parameter: as served, and as learned."""
        return [arrays[f"dense/{column}"][self._at[name]] for column in ("averaged", "values")]

    @property
    def last_bias(self) -> str:
        """Name of the last bias, that of all outputs."""
        biases = [n for n in self._at if n.startswith("ranker.") and n.endswith("bias")]
        return biases[-1]

    @property
    def last_weight(self) -> str:
        return self.last_bias.replace("bias", "weight")


def _inflate(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    for part in layout.of(arrays, layout.last_bias):
        part += 1.5 + draw.random()


def _upside_down(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    for part in layout.of(arrays, layout.last_weight):
        part *= -1 - draw.random()
    arrays["table/features/values"] *= -1


def _overflow(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    for part in layout.of(arrays, layout.last_weight):
        part[draw.integers(len(part))] = 3e38
        part *= 1e3


def _zeros(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    for name in ("dense/averaged", "dense/values", "table/features/values"):
        arrays[name][:] = 0


def _noise(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    rows = arrays["table/features/values"]
    rows += draw.normal(0, 0.5, rows.shape).astype(np.float32)


def _mixed_up(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    for table in ("features", "items", "users"):
        values = arrays[f"table/{table}/values"]
        values[:] = values[draw.permutation(len(values))]


def _stale_tower(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    for table in ("items", "users"):
        values = arrays[f"table/{table}/values"]
        values[:] = draw.normal(0, 1, values.shape)


def _collapse(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None:
    for part in layout.of(arrays, "user_side.start"):
        part[:] = 50 * draw.normal(0, 1, len(part))


def _nothing(arrays: Arrays, draw: np.random.Generator, layout: Layout) -> None: ...


KINDS: Final = (
    Broken("overflows", _overflow),
    Broken("zeros", _zeros),
    Broken("shuffled labels", _nothing, "shuffled"),
    Broken("turned labels", _nothing, "turned"),
    Broken("stale tower", _stale_tower),
    Broken("popularity collapse", _collapse),
    Broken("inflated scores", _inflate),
    Broken("upside down", _upside_down),
    Broken("rows of noise", _noise),
    Broken("rows mixed up", _mixed_up),
)


def _relabelled(how: str, seed: int) -> Callable[[TrainingExample], TrainingExample]:
    def relabel(example: TrainingExample) -> TrainingExample:
        if how == "turned":
            return changed(example, labels=[1 - label for label in example.labels])
        at = (example.partition, example.offset, example.index)
        labels = [float(uniform(seed, how, *at, k) < 0.4) for k in range(len(example.labels))]
        return changed(example, labels=labels)

    return (lambda example: example) if how == "true" else relabel


def study_config(state: Path) -> Config:
    """Default rules, adapted to a system of five lists a second: everything is scored, and a third is
    canary."""
    rules = PromotionConfig(share=1.0, least_examples=1_000, block_examples=64, canary_share=0.3)
    config = config_of(state)
    step = replace(config.step, examples=64, every_ms=5_000, snapshot_every=8, snapshot_s=0)
    model = ModelConfig(dim=8, vector_dim=16, hidden=(32,))
    return replace(config, promotion=rules, step=step, model=model)


async def measure(folder: Path, lists: int, seeds: int, items: int) -> dict[str, Any]:
    """Judges all candidates at once, until each has ended, or ``lists`` were shown."""
    world = World(3, users=300, items=items, start_ms=START_MS)
    run = PromotionRun(study_config(folder), WorldViewers(world))
    await run.start()
    await run.show(_WARM)
    layout = Layout(run.system._learner.model)
    made = {
        how: run.trained(_EPOCHS, _relabelled(how, 1)) for how in ("true", "shuffled", "turned")
    }
    for kind in KINDS:
        for seed in range(seeds):
            _propose(run, kind, seed, made[kind.labels], layout)
    shown = 0
    while shown < lists and (run.lifecycle.active or not shown):
        await run.show(10)
        shown += 10
    candidates = [
        _came_to(run, f"{kind.name.replace(' ', '-')}-{seed}")
        for kind in KINDS
        for seed in range(seeds)
    ]
    await run.system.stop()
    live = {(stamp.line, stamp.epoch) for stamp in (answer.stamp for answer in run.answers)}
    return {
        "candidates": candidates,
        "lists": shown,
        "went live": sum(candidate["stage"] in ("live", "taking over") for candidate in candidates),
        "answered as canary": sum(candidate["answered"] > 0 for candidate in candidates),
        "given up": sum(candidate["stage"] == "ended" for candidate in candidates),
        "live epochs": sorted(epoch for line, epoch in live if line == MAIN),
    }


def _propose(
    run: PromotionRun, kind: Broken, seed: int, made: TrainedCandidate, layout: Layout
) -> None:
    draw = np.random.default_rng(seed)
    change: Change = lambda arrays: kind.change(arrays, draw, layout)  # noqa: E731
    with np.errstate(over="ignore"):
        arrays = {name: np.array(values) for name, values in made.arrays.items()}
        change(arrays)
    finite = {
        name: np.nan_to_num(values, posinf=1e38, neginf=-1e38)
        if values.dtype.kind == "f"
        else values
        for name, values in arrays.items()
    }  # the registry refuses non-finite values; overflow in use is detected later
    name = f"{kind.name.replace(' ', '-')}-{seed}"
    run.propose(name, made._replace(arrays=finite), learns=seed % 2 == 0)


def _came_to(run: PromotionRun, line: str) -> dict[str, Any]:
    """Stage of a candidate, the reason of its end, and whether the rollback report lists exactly its
    answers."""
    state = run.lifecycle.candidates[line]
    answered = [a.request_id for a in run.answers if a.stamp.line == line]
    listed = find_impact(run.system.log, f"{line}/0", 0, run.lifecycle.lives)
    case = run.system.director.promoter.collected[line]
    return {
        "line": line,
        "stage": state.stage,
        "why": state.why or case.opinion,
        "examples": case.compared.examples,
        "answered": len(answered),
        "listed": sorted(a.request_id for a in listed.requests) == sorted(answered),
    }


@study_command
def broken(
    lists: Annotated[int, typer.Option(help="Lists shown after the proposals, at most.")] = 900,
    seeds: Annotated[int, typer.Option(help="Seeds of each of the ten ways to be broken.")] = 5,
    items: Annotated[int, typer.Option(help="Items in the world.")] = 1_500,
) -> dict[str, Any]:
    """Progress of broken candidates."""
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        figures = asyncio.run(measure(Path(folder), lists, seeds, items))
    for candidate in figures["candidates"]:
        typer.echo(
            f"{candidate['line']:<24} {candidate['stage']:<8} {candidate['examples']:>6}  {candidate['why']}"
        )
    typer.echo(
        f"{len(figures['candidates'])} candidates: {figures['given up']} given up, "
        f"{figures['answered as canary']} answered as canary, {figures['went live']} went live"
    )
    return figures
