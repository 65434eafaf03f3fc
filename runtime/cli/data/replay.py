"""``recsys replay DATA``: replays a data set in event time: scores each example, then learns from it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer import Argument, Option

from recsys.app.app_file import read_app
from recsys.config.loader import load
from recsys.config.system_config import Config, override
from replay.datasets.dataset import DataError, Dataset
from replay.datasets.open_dataset import open_dataset
from replay.judging.retrieval_recall import probe_for
from replay.predictions import Predictions, read_predictions, write_report
from replay.replay_report import report_of, with_bar
from replay.replay_run import Outputs, ReplayOptions, ReplayResult, config_for, replay_data
from runtime.cli.common import ConfigOption, check_folders, exit_on, from_checkout
from runtime.jobs.time_option import parse_time
from runtime.reports.retrieval_tables import print_questions, retrieval_table
from runtime.reports.tables import plain_table, some_of

_COLUMNS: Final = {
    "AUC": "auc", "by user": "grouped_auc", "in lists": "lists.auc", "nDCG": "lists.ndcg",
    "log loss": "log_loss", "calibration": "calibration",
}  # fmt: skip


def replay(
    data: Annotated[Path, Argument(help="Folder: KuaiRand, an event log, or an app's files.")],
    report: Annotated[Path | None, Option(help="Write metrics to this JSON file.")] = None,
    predictions: Annotated[Path | None, Option(help="Write scores to this Parquet file.")] = None,
    against: Annotated[Path | None, Option(help="Predictions of a run to compare with.")] = None,
    app: Annotated[Path | None, Option(help="Definition of the app, app.yaml.")] = None,
    config: ConfigOption = "laptop",
    features: Annotated[str | None, Option(help="ids, ids+history or all.")] = None,
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
    step_examples: Annotated[int | None, Option(help="Most examples of a step; 64.")] = None,
    step_every: Annotated[float | None, Option(help="Wait for a step, event seconds; 600.")] = None,
    through_broker: Annotated[
        str, Option(help="Run the real parts in lockstep over this log: sqlite or kafka.")
    ] = "",
    judge_from: Annotated[
        str | None, Option(help="Event time judged from; by default the later half of the days.")
    ] = None,
    k: Annotated[int, Option(min=1, help="Length of lists that are judged.")] = 10,
    retrieval: Annotated[
        float, Option(help="Share of the judged engagements whose retrieval is measured.")
    ] = 0.0,
    until_version: Annotated[str | None, Option(help="Last step to learn: 120 or 0.120.")] = None,
    digest: Annotated[bool, Option("--digest", help="Print only the state's SHA-256.")] = False,
) -> None:
    """Replays a data set in event time: scores each example, then learns from it."""
    with exit_on(DataError, ValueError):
        dataset = open_dataset(data, None if app is None else read_app(app), app)
        at = partial(parse_time, utc_offset_h=dataset.utc_offset_h)
        settings = _config(config, dataset, features, step_examples, step_every)
        options = ReplayOptions(
            settings.model.features, at(frozen_after), int(sync_every * 1000), at(from_), at(until),
            _warms_up(warm_up, through_broker), settings.step.examples,
            settings.step.every_ms / 1000, through_broker, _parse_version(until_version),
            at(judge_from), k,
        )  # fmt: skip
        check_folders(report, predictions)
        baseline = None if against is None else _read_baseline(against, dataset.labels[0])
        outputs = Outputs(predictions, probe_for(dataset, options, retrieval))
        replayed = _run(dataset, options, settings, outputs)
    metrics = report_of(data, dataset, options, replayed, baseline)
    if report is not None:
        write_report(report, metrics)
    if digest:
        typer.echo(replayed.digest)
    else:
        _print(metrics, replayed)


def _config(
    name: str, dataset: Dataset, features: str | None, step_examples: int | None, step_every: float | None
) -> Config:
    """The configuration: options before the file, and that before the defaults of the data set's replay."""
    own = ReplayOptions()
    config = load(name, lambda base: config_for(dataset, replace(own, features=base.model.features), base))
    every_ms = None if step_every is None else int(step_every * 1000)
    given = {"model.features": features, "step.examples": step_examples, "step.every_ms": every_ms}
    changed: Config = override(config, {key: x for key, x in given.items() if x is not None})
    return changed


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
            "recsys: --through-broker skips the warm-up; compare with a replay with --no-warm-up", err=True
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


def _run(dataset: Dataset, options: ReplayOptions, config: Config, outputs: Outputs) -> ReplayResult:
    replay = replay_data
    if options.through_broker:
        replay = from_checkout("benchmarks.harness.broker_loop:replay_through_broker")
    return replay(dataset, options, config, with_bar, outputs)


def _print(report: dict[str, Any], replayed: ReplayResult) -> None:
    """Prints the first lines of the report as tables."""
    numbers = ("rows", *_COLUMNS)
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
    if constant := report.get("constant_columns"):
        console.print(f"columns of one value, which teach nothing: {some_of(constant)}")
    if "retrieval" in report:
        console.print(retrieval_table(report["retrieval"]))
        print_questions(console, report["retrieval"])


def _cells(measured: dict[str, Any]) -> list[str]:
    inside = {name.partition("@")[0]: value for name, value in measured["lists"].items()}
    lists = {f"lists.{name}": value for name, value in inside.items()}
    numbers = [(measured | lists).get(name) for name in _COLUMNS.values()]
    return [f"{measured['rows']:,}", *("–" if x is None else f"{x:.4f}" for x in numbers)]
