"""`recsys replay DATA`: score, then learn, in event time, over a data set of the past."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from recsys.config.system_config import ModelConfig
from replay.datasets.dataset import DataError, Dataset
from replay.datasets.open_dataset import open_dataset
from replay.predictions import Predictions, read_predictions, write_predictions, write_report
from replay.replay_report import print_report, report_of, with_bar
from replay.replay_run import Replayed, ReplayOptions, replay_data
from runtime.cli.common import check_folders


def _parse_version(text: str | None) -> int | None:
    """The step of ``120`` or, as the predictions have it, ``0.120``; a replay has epoch 0 only."""
    if text is None:
        return None
    epoch, _, step = text.rpartition(".")
    if epoch not in ("", "0") or not step.isdecimal() or int(step) < 1:
        raise ValueError(
            f"--until-version is {text!r}, expected a step from 1 on, e.g. 120 or 0.120 (epoch.step)"
        )
    return int(step)


def parse_time(text: str | None, utc_offset_h: float) -> int | None:
    """Epoch milliseconds or ISO time; a time without a zone is in the data set's."""
    if text is None:
        return None
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no time; expected epoch milliseconds or ISO, e.g. 2022-04-28T00:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone(timedelta(hours=utc_offset_h)))
    return int(moment.astimezone(UTC).timestamp() * 1000)


def replay(
    data: Annotated[Path, typer.Argument(help="A folder: KuaiRand, or an event log.")],
    report: Annotated[Path | None, typer.Option(help="Write the metrics here, as JSON.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Write every score here, as Parquet.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Predictions of another run: report the paired difference.")
    ] = None,
    features: Annotated[str, typer.Option(help="ids, ids+history or all.")] = "all",
    frozen_after: Annotated[
        str | None, typer.Option(help="Learn nothing from this time on (sessions go on).")
    ] = None,
    sync_every: Annotated[
        float, typer.Option(help="Hold model updates back to multiples of so many seconds.")
    ] = 0.0,
    from_: Annotated[str | None, typer.Option("--from", help="Event time to start at.")] = None,
    until: Annotated[str | None, typer.Option(help="Event time to stop before.")] = None,
    warm_up: Annotated[
        bool | None,
        typer.Option(
            "--warm-up/--no-warm-up",
            help="Fold what is known from before the log: always, but with --through-broker.",
        ),
    ] = None,
    step_examples: Annotated[int, typer.Option(help="Examples in a step, at the most.")] = 64,
    step_every: Annotated[float, typer.Option(help="Event seconds that an example waits.")] = 600.0,
    through_broker: Annotated[
        str, typer.Option(help="Run the real parts in lockstep over this log: sqlite or kafka.")
    ] = "",
    until_version: Annotated[
        str | None, typer.Option(help="End when this step has been learned: 120, or 0.120.")
    ] = None,
    digest: Annotated[
        bool, typer.Option("--digest", help="Print the SHA-256 of the learned state, and no table.")
    ] = False,
) -> None:
    """Scores, then learns from a data set in event time."""
    try:
        dataset = open_dataset(data)
        zone = dataset.utc_offset_h
        options = ReplayOptions(
            ModelConfig(features=features).features, parse_time(frozen_after, zone),
            int(sync_every * 1000), parse_time(from_, zone), parse_time(until, zone),
            _warms_up(warm_up, through_broker), step_examples, step_every, through_broker,
            _parse_version(until_version),
        )  # fmt: skip
        check_folders(report, predictions)
        theirs = None if against is None else _theirs(against, dataset.labels[0])
        replayed = _run(dataset, options)
    except (DataError, ValueError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    found = report_of(data, dataset, options, replayed, theirs)
    _write(found, replayed, report, predictions)
    if digest:
        typer.echo(replayed.digest)
    else:
        print_report(found, replayed)


def _write(
    found: dict[str, Any], replayed: Replayed, report: Path | None, predictions: Path | None
) -> None:
    if predictions is not None:
        write_predictions(predictions, replayed.predictions)
    if report is not None:
        write_report(report, found)


def _warms_up(asked: bool | None, through_broker: str) -> bool:
    """Whether to warm up. Raises ValueError where it was asked for and can't be had."""
    if not through_broker:
        return asked is not False
    if asked:
        raise ValueError(
            f"--warm-up is given with --through-broker {through_broker}, but what is folded without being "
            "learned isn't on a log; leave --warm-up out, or replay in one process"
        )
    if asked is None:
        typer.echo(
            "recsys: --through-broker leaves the warm-up out; compare with a replay with --no-warm-up",
            err=True,
        )
    return False


def _theirs(file: Path, label: str) -> Predictions:
    """The predictions to compare with; raises ValueError where they can't be."""
    try:
        theirs = read_predictions(file)
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error}") from error
    if label not in theirs.scores:
        there = ", ".join(theirs.scores) or "none"
        raise ValueError(f"{file} has no column score_{label}; it has scores of {there}")
    return theirs


def _run(dataset: Dataset, options: ReplayOptions) -> Replayed:
    if options.through_broker:
        from replay.broker_loop import replay_through_broker

        return replay_through_broker(dataset, options, with_bar)
    return replay_data(dataset, options, progress=with_bar)
