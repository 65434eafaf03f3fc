"""`recsys study drift`: the benefit of merging offline and online models when the world changes."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.harness.commands import check_at_least, study_command
from benchmarks.studies.drift.drift_arms import ArmResults, Arms, Track
from benchmarks.studies.drift.drift_figures import Run, figures_of, plot, run_of, shown
from benchmarks.studies.drift.refit import RefitOptions
from benchmarks.studies.drift.scenario_log import DAYS, ScenarioLog
from benchmarks.studies.drift.scenario_stream import Stream, watch
from benchmarks.studies.drift.world_scenarios import SCENARIOS
from benchmarks.studies.quality.judged_days import judged_from_ms
from recsys.config.system_config import Config, ModelConfig, ParameterServerConfig, StepConfig
from replay.datasets.open_dataset import open_dataset
from replay.replay_report import with_bar
from replay.replay_run import ReplayOptions
from runtime.cli.common import check_folders

_SAMPLES = 500  # draws of users
_WINDOWS_A_DAY = 4
_HOUR_MS = 3_600_000
_READY_MS = 6 * _HOUR_MS  # duration of the job on a folder
_REFIT = RefitOptions(epochs=3)
Found = dict[str, Any]


@study_command
def drift(
    data: Annotated[
        Path | None, typer.Argument(help="A folder as for replay, instead of scenarios.")
    ] = None,
    story: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(SCENARIOS)}; all if none is named.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs with other initial values (and worlds).")] = 5,
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    hours: Annotated[float, typer.Option(help="Hours of a scenario, which has five days.")] = 24.0
    * DAYS,
    features: Annotated[str, typer.Option(help="ids, ids+history or all.")] = "all",
    step_examples: Annotated[int, typer.Option(help="Examples in a step, at most.")] = 128,
    student: Annotated[
        bool, typer.Option(help="Adds an arm: a small int8 line taught by the online one.")
    ] = False,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Write a plot to this file, as SVG.")
    ] = None,
) -> Iterator[Found]:
    """Nightly lists, offline, online, warm start and merged models in a changing world."""
    torch.set_num_threads(1)
    check_at_least(1, seeds=seeds)
    if data is not None and story:
        raise ValueError("a folder is given with --story, expected one of them")
    check_folders(plot_file)
    options = ReplayOptions(ModelConfig(features=features).features, step_examples=step_examples)
    logs = [ScenarioLog(first_seed, hours, story=name) for name in story or SCENARIOS]
    chosen = range(first_seed, first_seed + seeds)
    results = (
        iter([_folder(data, options, chosen, student)])
        if data
        else (_scenario(log, options, chosen, student) for log in logs)
    )
    scenarios: list[Found] = []
    for scenario in results:
        scenarios.append(scenario)
        _print(scenario)
        if plot_file is not None:
            plot_file.write_text(
                plot(scenarios, f"AUC of long_view over time by arm, {seeds} seeds")
            )
        yield {
            "label": "long_view",
            "options": {
                "features": options.features,
                "step_examples": options.step_examples,
                "step_every_s": options.step_every_s,
            },
            "seeds": list(chosen),
            "samples": _SAMPLES,
            "stories": scenarios,
        }


def _base(seed: int) -> Config:
    """One lane and one shard, because nothing is parallel; no retrieval, because only the ranker is
    judged."""
    return Config(
        step=StepConfig(lanes=1),
        model=ModelConfig(seed=seed, retrieval_weight=0.0),
        parameter_server=ParameterServerConfig(shards=1, delta_format="fp32"),
    )


def _scenario(log: ScenarioLog, options: ReplayOptions, seeds: range, student: bool) -> Found:
    started, runs, about = time.monotonic(), [], []
    from_ms, window_ms = log.nights()[0][1], log.world().day_ms / _WINDOWS_A_DAY
    for seed in seeds:
        log = replace(log, seed=seed)
        stream = watch(log, options, _base(seed), log.nights())
        played = Arms(Track(stream), _REFIT, student).play()
        real = np.array([log.world().is_judged(user) for user in stream.users])
        window = ((stream.time_ms - from_ms) // window_ms).astype(np.int64)
        runs.append(_judge(stream, played, real & (stream.time_ms >= from_ms), window, seed))
        about.append(_about(played, log.world().start_ms))
    start_ms = log.world().start_ms
    return _with_figures(log.story, played, runs, about, stream, started, {
        "from_h": (from_ms - start_ms) / _HOUR_MS,
        "window_h": window_ms / _HOUR_MS,
        "ready_h": [(ready_ms - start_ms) / _HOUR_MS for _, ready_ms in log.nights()],
    })  # fmt: skip


def _folder(data: Path, options: ReplayOptions, seeds: range, student: bool) -> Found:
    """One job at the first judged midnight, trained on all days before; judged from then on."""
    started, runs, about = time.monotonic(), [], []
    dataset = open_dataset(data)
    from_ms, window_ms = judged_from_ms(dataset), 24 * _HOUR_MS / _WINDOWS_A_DAY
    nights = [(from_ms, from_ms + _READY_MS)]
    stream = watch(dataset, options, _base(0), nights, lists=False, progress=with_bar)
    window = ((stream.time_ms - from_ms) // window_ms).astype(np.int64)
    for seed in seeds:
        model = replace(stream.config.model, seed=seed)
        own = replace(stream, config=replace(stream.config, model=model))
        played = Arms(Track(own), _REFIT, student).play()
        lists = {arm: scores for arm, scores in played.scores.items() if arm != "nightly lists"}
        played = replace(played, scores=lists)
        runs.append(_judge(own, played, stream.time_ms >= from_ms, window, 0))
        about.append(_about(played, from_ms))
    zone = timezone(timedelta(hours=dataset.utc_offset_h))
    since = datetime.fromtimestamp(from_ms / 1000, zone).isoformat()
    return _with_figures(dataset.name, played, runs, about, stream, started, {
        "from": since,
        "from_h": 0.0,
        "window_h": window_ms / _HOUR_MS,
        "ready_h": [_READY_MS / _HOUR_MS],
    })  # fmt: skip


def _judge(stream: Stream, played: ArmResults, judged: Any, window: Any, seed: int) -> Run:
    return run_of(
        played.scores, judged, stream.labels, stream.users, window, samples=_SAMPLES, seed=seed
    )


def _about(played: ArmResults, start_ms: int) -> Found:
    return {
        "epochs": played.epochs,
        "weights": [round(weight, 3) for weight in played.weights],
        "changes": [[round((ms - start_ms) / _HOUR_MS, 1), form] for ms, form in played.changes],
    }


def _with_figures(
    name: str,
    played: ArmResults,
    runs: list[Run],
    about: list[Found],
    stream: Stream,
    started: float,
    times: Mapping[str, Any],
) -> Found:
    figures = {"story": name} | figures_of(list(played.scores), runs) | dict(times)
    return figures | {
        "shown": {arm: shown(figures, arm) for arm in figures["to_better_parent"]},
        "runs": about,
        "rows": len(stream.time_ms),
        "judged_rows": runs[-1].rows,
        "steps": len(stream.cuts),
        "seconds": round(time.monotonic() - started, 1),
    }


def _print(story: Found) -> None:
    typer.echo(f"{story['story']}: {story['rows']} rows, {story['seconds']:.0f} s")
    for arm in story["arms"]:
        typer.echo(f"{arm['arm']:>18}  AUC {arm['auc']:.4f}  log loss {arm['log_loss']:.4f}")
    for pair in story["pairs"]:
        typer.echo(
            f"  {pair['to']} − {pair['from']}: {pair['difference']:+.4f} "
            f"({pair['low']:+.4f} to {pair['high']:+.4f}), {pair['said']}"
        )
