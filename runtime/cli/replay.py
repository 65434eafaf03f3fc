"""``recsys replay DATA``: replays a data set in event time: scores each example, then learns from it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from recsys.config.system_config import ModelConfig
from replay.datasets.dataset import DataError, Dataset
from replay.datasets.open_dataset import open_dataset
from replay.predictions import Predictions, read_predictions, write_predictions, write_report
from replay.replay_report import report_of, with_bar
from replay.replay_run import ReplayOptions, ReplayResult, replay_data
from runtime.cli.common import check_folders, exit_on, from_checkout
from runtime.jobs.time_option import parse_time
from runtime.reports.tables import plain_table


def replay(
    data: Annotated[Path, Argument(help="Data set folder: KuaiRand or an event log.")],
    report: Annotated[Path | None, Option(help="Write metrics to this JSON file.")] = None,
    predictions: Annotated[Path | None, Option(help="Write scores to this Parquet file.")] = None,
    against: Annotated[Path | None, Option(help="Predictions of a run to compare with.")] = None,
    features: Annotated[str, Option(help="ids, ids+history or all.")] = "all",
    frozen_after: Annotated[str | None, Option(help="Time after which nothing is learned.")] = None,
    sync_every: Annotated[float, Option(help="Interval of model updates in seconds.")] = 0.0,
    from_: Annotated[str | None, Option("--from", help="Event time to start at.")] = None,
    until: Annotated[str | None, Option(help="Event time to stop before.")] = None,
    warm_up: Annotated[
        bool | None,
        Option(
            "--warm-up/--no-warm-up",
            help="Fold the data from before the log; on by default, except with --through-broker.",
        ),
    ] = None,
    step_examples: Annotated[int, Option(help="Maximum number of examples per step.")] = 64,
    step_every: Annotated[float, Option(help="Maximum wait for a step, event seconds.")] = 600.0,
    through_broker: Annotated[
        str, Option(help="Run the real parts in lockstep over this log: sqlite or kafka.")
    ] = "",
    until_version: Annotated[str | None, Option(help="Last step to learn: 120 or 0.120.")] = None,
    digest: Annotated[bool, Option("--digest", help="Print only the state's SHA-256.")] = False,
) -> None:
    """Replays a data set in event time: scores each example, then learns from it."""
    with exit_on(DataError, ValueError):
        dataset = open_dataset(data)
        zone = dataset.utc_offset_h
        options = ReplayOptions(
            ModelConfig(features=features).features, parse_time(frozen_after, zone),
            int(sync_every * 1000), parse_time(from_, zone), parse_time(until, zone),
            _warms_up(warm_up, through_broker), step_examples, step_every, through_broker,
            _parse_version(until_version),
        )  # fmt: skip
        check_folders(report, predictions)
        baseline = None if against is None else _read_baseline(against, dataset.labels[0])
        replayed = _run(dataset, options)
    metrics = report_of(data, dataset, options, replayed, baseline)
    if predictions is not None:
        write_predictions(predictions, replayed.predictions)
    if report is not None:
        write_report(report, metrics)
    if digest:
        typer.echo(replayed.digest)
    else:
        _print(metrics, replayed)


def _parse_version(text: str | None) -> int | None:
    """Parses a step, ``120`` or as in the predictions ``0.120``; a replay has epoch 0 only."""
    if text is None:
        return None
    epoch, _, step = text.rpartition(".")
    if epoch not in ("", "0") or not step.isdecimal() or int(step) < 1:
        raise ValueError(
            f"--until-version is {text!r}, expected a step from 1 on, e.g. 120 or 0.120 (epoch.step)"
        )
    return int(step)


def _warms_up(asked: bool | None, through_broker: str) -> bool:
    """Whether to warm up. Raises ValueError where it is requested but impossible."""
    if not through_broker:
        return asked is not False
    if asked:
        raise ValueError(
            f"--warm-up is given with --through-broker {through_broker}, but data that are folded without "
            "being learned aren't on a log; leave --warm-up out, or replay in one process"
        )
    if asked is None:
        typer.echo(
            "recsys: --through-broker skips the warm-up; compare with a replay with --no-warm-up",
            err=True,
        )
    return False


def _read_baseline(file: Path, label: str) -> Predictions:
    """Reads predictions to compare with. Raises ValueError for an unusable file."""
    try:
        baseline = read_predictions(file)
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    if label not in baseline.scores:
        labels = ", ".join(baseline.scores) or "none"
        raise ValueError(f"{file} has no column score_{label}; it has scores of {labels}")
    return baseline


def _run(dataset: Dataset, options: ReplayOptions) -> ReplayResult:
    if options.through_broker:
        replay = from_checkout("benchmarks.harness.broker_loop:replay_through_broker")
        result: ReplayResult = replay(dataset, options, with_bar)
        return result
    return replay_data(dataset, options, progress=with_bar)


def _print(report: dict[str, Any], replayed: ReplayResult) -> None:
    """Prints the first lines of the report as a table."""
    numbers = ("rows", "AUC", "by user", "log loss", "calibration")
    first, rows = next(iter(report["labels"]), None), []
    for label, measured in report["labels"].items():
        rows.append((label, *_cells(measured)))
        if label == first:
            rows += [(f"  {name}", *_cells(inner)) for name, inner in measured["slices"].items()]
    title = f"{report['rows']:,} scores, {replayed.steps:,} steps, {report['seconds']} s"
    console = Console()
    console.print(plain_table(("label", *numbers), rows, title=title, right=numbers))
    if "against" in report:
        console.print(report["against"])


def _cells(measured: dict[str, Any]) -> list[str]:
    names = ("auc", "grouped_auc", "log_loss", "calibration")
    numbers = [measured.get(name) for name in names]
    return [f"{measured.get('rows', 0):,}", *("–" if x is None else f"{x:.4f}" for x in numbers)]
