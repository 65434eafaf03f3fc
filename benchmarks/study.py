"""`recsys study freshness DATA|world`: what serving fresh weights is worth (docs/freshness.md).

All others are in recsys/cli/studies/, in files named alike.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness.world_log import WorldLog
from benchmarks.studies.drift.study_drift import drift
from benchmarks.studies.drift.study_forgetting import forgetting
from benchmarks.studies.experiments.study_arms import arms
from benchmarks.studies.experiments.study_counterfactual import counterfactual
from benchmarks.studies.experiments.study_experiments import experiments
from benchmarks.studies.experiments.study_interleaving import interleaving
from benchmarks.studies.promotion.study_broken import broken
from benchmarks.studies.promotion.study_promotion import promotion
from benchmarks.studies.promotion.study_student import student
from benchmarks.studies.quality.study_coldstart import coldstart
from benchmarks.studies.quality.study_figures import Judged, draw_aucs, figures, plot
from benchmarks.studies.quality.study_quality import quality
from recsys.config.system_config import Config, ModelConfig
from recsys.features.feature_set import FeatureSet
from replay.datasets.dataset import DataError, Dataset
from replay.datasets.open_dataset import open_dataset
from replay.direct_loop import DirectLoop
from replay.parameter_copies import SideBySide, Sync
from replay.replay_report import judged_from_ms, with_bar
from replay.replay_run import Progress, ReplayOptions, config_for, replay_with
from runtime.cli.common import check_folders

_SAMPLES = 500  # draws of users
_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS
# From the stalest to the freshest: neighbours are compared.
_EVERY_MS = (
    ("1 day", _DAY_MS),
    ("5 h", 300 * _MINUTE_MS),
    ("1 h", 60 * _MINUTE_MS),
    ("30 min", 30 * _MINUTE_MS),
    ("1 min", _MINUTE_MS),
    ("each step", 0),
)

study = typer.Typer(add_completion=False, no_args_is_help=True)
study.command()(quality)
study.command()(coldstart)
study.command()(promotion)
study.command()(broken)
study.command()(forgetting)
study.command()(drift)
study.command()(student)
study.command()(arms)
study.command()(experiments)
study.command()(counterfactual)
study.command()(interleaving)


@study.callback()
def _study() -> None:
    """Measures what a part of the design is worth."""


def syncs_of(frozen_after_ms: int) -> list[Sync]:
    """The kinds of sync that are compared, from the stalest to the freshest."""
    return [Sync("frozen", 0, frozen_after_ms), *(Sync(name, ms) for name, ms in _EVERY_MS)]


def judge(
    dataset: Dataset, options: ReplayOptions, seed: int, progress: Progress = iter
) -> tuple[Judged, int]:
    """One replay with all kinds of sync side by side: the judged rows, and how many steps were learned.

    ``seed`` is that of the model's initial values.
    """
    from_ms = judged_from_ms(dataset)
    config = config_for(dataset, options, Config(model=ModelConfig(seed=seed)))
    features = FeatureSet(dataset.schema, options.features, config.sessions.history)
    loop = DirectLoop(features, config)
    player = SideBySide(features, config, loop, syncs=syncs_of(from_ms))
    rows = replay_with(player, dataset, options, progress, loop.digest).predictions
    judged_N = np.asarray(rows.time_ms) >= from_ms
    judged = Judged(
        np.array([copy.scores()[judged_N] for copy in player.copies]),
        np.asarray(rows.labels[dataset.labels[0]])[judged_N],
        np.array([str(user) for user in rows.user_id])[judged_N],
    )
    return judged, loop.sequencer.step


@study.command()
def freshness(
    data: Annotated[str, typer.Argument(help="A folder, as for replay; or world, a drifting one.")],
    features: Annotated[str, typer.Option(help="ids, ids+history or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Runs with other initial values (and worlds).")] = 5,
    hours: Annotated[float, typer.Option(help="Of the world: how long it is watched.")] = 72.0,
    step_examples: Annotated[int, typer.Option(help="Examples in a step, at the most.")] = 64,
    step_every: Annotated[float, typer.Option(help="Event seconds that an example waits.")] = 600.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Write a picture here, as SVG.")
    ] = None,
) -> None:
    """AUC as a function of how often a replica takes what was learned."""
    try:
        if seeds < 1:
            raise ValueError(f"--seeds is {seeds}, expected 1 or more")
        check_folders(json_file, plot_file)
        options = ReplayOptions(
            ModelConfig(features=features).features,
            step_examples=step_examples,
            step_every_s=step_every,
        )
        found = measure(data, options, seeds, hours)
    except (DataError, ValueError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    _print(found)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    if plot_file is not None:
        title = (
            f"AUC of {found['label']} by sync interval: {found['data']}, {features}, {seeds} seeds"
        )
        plot_file.write_text(plot(found, title))


def measure(
    data: str, options: ReplayOptions, seeds: int, hours: float, progress: Progress = with_bar
) -> dict[str, Any]:
    """The figures of all seeds. Of a folder, every seed is judged with the same draws of its users."""
    started, drawn, steps = time.monotonic(), [], []
    world = data == "world"
    dataset: Dataset = WorldLog(0, hours) if world else open_dataset(data)
    for seed in range(seeds):
        if world:
            dataset = WorldLog(seed, hours)
        judged, learned = judge(dataset, options, seed, progress)
        drawn.append(draw_aucs(judged, _SAMPLES, seed if world else 0))
        steps.append(learned)
    return {
        "study": "freshness",
        "data": dataset.name,
        "label": dataset.labels[0],
        "options": {"features": options.features, "step_examples": options.step_examples,
                    "step_every_s": options.step_every_s, **({"hours": hours} if world else {})},
        "seeds": list(range(seeds)),
        "steps": steps,
        "rows": judged.labels_N.size,
        "users": len(np.unique(judged.users_N)),
        "samples": _SAMPLES,
        "seconds": round(time.monotonic() - started, 1),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        **figures([sync.name for sync in syncs_of(0)], drawn),
    }  # fmt: skip


def _print(found: dict[str, Any]) -> None:
    for sync in found["syncs"]:
        typer.echo(f"{sync['sync']:>10}  AUC {sync['auc']:.4f}")
    for pair in found["pairs"]:
        typer.echo(
            f"{pair['from']} → {pair['to']}: {pair['difference']:+.4f} "
            f"({pair['low']:+.4f} to {pair['high']:+.4f}), {pair['said']}"
        )
