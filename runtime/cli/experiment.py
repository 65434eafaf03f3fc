"""``recsys experiment``: lists, checks, starts, stops and reports experiments."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from typer import Argument, Option

from experiments.assignment.definition import read_experiments
from experiments.statistics.revision import parse_each
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.control_records import ExperimentRequest
from recsys.features.feature_set_file import FEED_SCHEMA, labels_of
from runtime.cli.common import JsonOption, StateOption, exit_on, fail, show, with_system
from runtime.jobs.director_requests import (
    check_startable,
    find_experiment,
    newest_experiments,
    request_experiment,
)
from runtime.reports.experiment_summary import read_interleaving, read_report, summary_row
from runtime.reports.experiment_table import list_table, report_tables
from training.candidates.director import CONFIGS

NameArgument = Annotated[str, Argument(help="Name of the experiment.")]

experiment = typer.Typer(
    help="Manages experiments: YAML files whose arms change the policy, evaluated by user behaviour.",
    add_completion=False,
    no_args_is_help=True,
)


@experiment.command("list")
def list_(state: StateOption = Path("state"), json: JsonOption = None) -> None:
    """Lists a system's experiments with state, arms and metrics."""
    with with_system(state) as (config, log):
        revision = newest_experiments(log)
        experiments, unreadable = parse_each(revision, config.policy, labels_of(config))
        rows = [summary_row(experiment, revision) for experiment in experiments]
        for name, why in unreadable.items():
            fail(f"{name} can't be read: {why}")
        show(rows, json, lambda _: [list_table(rows, revision.revision)])


@experiment.command()
def check(
    files: Annotated[list[Path] | None, Argument(help="YAML files; default: the code's.")] = None,
    state: Annotated[Path | None, Option(help="System that they are to run in.")] = None,
) -> None:
    """Validates experiment files, alone and together; errors name file, line and reason."""
    paths = files or sorted(CONFIGS.glob("*.yaml"))
    with exit_on(OSError, ValueError):
        texts = {str(path): path.read_text("utf-8") for path in paths}
        if state is None:
            experiments = read_experiments(texts, Config().policy, FEED_SCHEMA.labels)
        else:
            with with_system(state) as (config, log):
                experiments = check_startable(texts, newest_experiments(log), config)
    for item in experiments:
        arms = ", ".join(f"{arm.name} {arm.share:.0%}" for arm in item.arms)
        typer.echo(f"{item.name}: {item.traffic:.0%} of {item.layer}: {arms}")


@experiment.command()
def start(
    file: Annotated[Path, Argument(help="A YAML file.")],
    state: StateOption = Path("state"),
    at_once: Annotated[bool, Option("--at-once", help="Start without the ramp.")] = False,
) -> None:
    """Starts an experiment in a running system; nothing is restarted."""
    with with_system(state) as (config, log):
        request = ExperimentRequest(
            what="start", name=str(file), text=file.read_text("utf-8"), at_once=at_once, time_ms=machine_ms()
        )
        revision = request_experiment(log, config, request)
        (started,) = read_experiments({str(file): request.text}, config.policy, labels_of(config))
        current = revision.states[started.name]
        typer.echo(
            f"{started.name} is {current.state}, {current.traffic:.1%} of {started.layer}, revision "
            f"{revision.revision}: see `recsys experiment report {started.name} --state {state}`"
        )


@experiment.command()
def stop(
    name: NameArgument,
    state: StateOption = Path("state"),
    reason: Annotated[str, Option(help="Reason for the record.")] = "",
) -> None:
    """Stops an experiment: from the next request on nobody is assigned its arms. Its report stays."""
    with with_system(state) as (config, log):
        request = ExperimentRequest(what="stop", name=name, reason=reason, time_ms=machine_ms())
        revision = request_experiment(log, config, request)
        typer.echo(f"{name} is stopped, revision {revision.revision}: {revision.states[name].why}")


@experiment.command()
def report(name: NameArgument, state: StateOption = Path("state"), json: JsonOption = None) -> None:
    """Reports the effects of an experiment's arms, with intervals that are valid at every look."""
    with with_system(state) as (config, log):
        experiment = find_experiment(name, newest_experiments(log), config)
        if experiment.interleaves:
            values, lines = read_interleaving(log, config, experiment)
        else:
            readout, notes = read_report(log, config, experiment)
            values = {**msgspec.to_builtins(readout), "notes": notes}
            lines = list(report_tables(readout, notes))
        show(values, json, lambda _: lines)
