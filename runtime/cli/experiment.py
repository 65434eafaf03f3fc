"""``recsys experiment``: what runs, whether a file is right, what it could find, what it has shown.

All of it is read from, and asked on, the system's log; the director alone appends revisions.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console

from experiments.assignment.definition import Experiment, read_experiments
from experiments.statistics.readout import Readout, metrics_needed
from experiments.statistics.revision import ExperimentSet, apply_request, parse_each
from recsys.clock import wall_ms
from recsys.config.system_config import Config
from recsys.events.control_records import Control, ExperimentRequest, Experiments
from recsys.events.records import CONTROL, pack
from recsys.features.feature_set_file import FEED_SCHEMA, labels_of
from recsys.log.protocol import Append, Log
from recsys.process.log_consumer import readable
from runtime.cli.candidates import StateOption, with_system
from runtime.reports.experiment_page import page
from runtime.reports.experiment_power import Guess, answer_from_log, answer_given
from runtime.reports.experiment_summary import began_ms, notes_of, row_of
from runtime.reports.experiment_table import list_table, power_table, report_tables
from runtime.reports.interleaving_report import read_interleaving
from training.candidates.director import CONFIGS
from training.outcomes.experiment_fold import ExperimentFold

JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]
_ANSWER_S: Final = 30.0
_LOOK_S: Final = 0.05

experiment = typer.Typer(add_completion=False, no_args_is_help=True)


@experiment.callback()
def _experiment() -> None:
    """Experiments: files whose arms change the policy, judged by what users do."""


@experiment.command("list")
def list_(state: StateOption = Path("state"), json: JsonOption = False) -> None:
    """Shows the experiments of a system: where each stands, its arms, what decides."""
    with with_system(state) as (config, log):
        said = newest(log)
        found, unread = parse_each(said, config.policy, labels_of(config))
        rows = [row_of(its, said) for its in found]
        for name, why in unread.items():
            typer.secho(f"recsys: {name} can't be read: {why}", fg="red", err=True)
        if json:
            _print_json(rows)
        else:
            Console().print(list_table(rows, said.revision))


@experiment.command()
def check(
    files: Annotated[
        list[Path] | None, typer.Argument(help="YAML files; without, those beside the code.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="A system, by whose policy, labels and experiments.")
    ] = None,
) -> None:
    """Reads files of experiments, alone and together; says file, line and reason where one is wrong."""
    paths = files or sorted(CONFIGS.glob("*.yaml"))
    try:
        texts = {str(path): path.read_text("utf-8") for path in paths}
        if state is None:
            found = read_experiments(texts, Config().policy, FEED_SCHEMA.labels)
        else:
            with with_system(state) as (config, log):
                found = _check_beside(texts, newest(log), config)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    for its in found:
        arms = ", ".join(f"{arm.name} {arm.share:.0%}" for arm in its.arms)
        typer.echo(f"{its.name}: {its.traffic:.0%} of {its.layer}: {arms}")


def _check_beside(
    texts: dict[str, str], said: Experiments, config: Config
) -> tuple[Experiment, ...]:
    """As they would be started one after the other; those that run already count as themselves."""
    labels, told = labels_of(config), ExperimentSet(said.configs, said.stands)
    found = []
    for file, text in texts.items():
        (its,) = read_experiments({file: text}, config.policy, labels)
        if text not in told.configs.values():
            wish = ExperimentRequest(what="start", name=file, text=text)
            told = apply_request(told, wish, config.policy, labels, wall_ms())
        found.append(its)
    return tuple(found)


@experiment.command()
def power(
    name: Annotated[
        str, typer.Argument(help="An experiment of the system, or a YAML file; without: any.")
    ] = "",
    state: StateOption = Path("state"),
    metric: Annotated[str, typer.Option(help="Without an experiment: the metric.")] = "",
    effect: Annotated[float, typer.Option(help="Relative: 0.02 is 2 % more.")] = 0.0,
    wanted: Annotated[float, typer.Option("--power", help="The probability to find it.")] = 0.8,
    mean: Annotated[float, typer.Option(help="Given, not seen: the mean of a user's value.")] = 0.0,
    sd: Annotated[float, typer.Option(help="Its standard deviation among users.")] = 0.0,
    users_per_day: Annotated[float, typer.Option(help="New users of the experiment a day.")] = 0.0,
    days: Annotated[int, typer.Option(help="How long it runs, at the most.")] = 28,
    json: JsonOption = False,
) -> None:
    """Says how many users it takes to find an effect, and what can be found: from the log of a system, where
    users come again, or from a given mean and deviation, where each comes once."""
    guess = Guess(effect, wanted)
    try:
        if mean or sd or users_per_day:
            found = answer_given(guess, mean, sd, users_per_day, days)
        else:
            with with_system(state) as (config, log):
                its = _meant(name, newest(log), config) if name else None
                if its is not None and its.interleaves:
                    raise ValueError(
                        f"{name} is an interleaving, expected an experiment of arms: see `recsys study "
                        "interleaving` for how many lists it takes"
                    )
                found = answer_from_log(guess, log, labels_of(config), its, metric)
    except ValueError as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    if json:
        _print_json(found)
    else:
        Console().print(power_table(found))


@experiment.command()
def start(
    file: Annotated[Path, typer.Argument(help="A YAML file.")],
    state: StateOption = Path("state"),
    at_once: Annotated[
        bool, typer.Option("--at-once", help="With all of its traffic: without its ramp.")
    ] = False,
) -> None:
    """Starts an experiment of a running system; no part is restarted."""
    with with_system(state) as (config, log):
        wish = ExperimentRequest(
            what="start", name=str(file), text=file.read_text("utf-8"), at_once=at_once,
            time_ms=wall_ms(),
        )  # fmt: skip
        said = _ask(log, config, wish)
        (its,) = read_experiments({str(file): wish.text}, config.policy, labels_of(config))
        stand = said.stands[its.name]
        typer.echo(
            f"{its.name} is {stand.state}, {stand.traffic:.1%} of {its.layer}, revision {said.revision}: see "
            f"`recsys experiment report {its.name} --state {state}`"
        )


@experiment.command()
def stop(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    state: StateOption = Path("state"),
    reason: Annotated[str, typer.Option(help="What stands in the record.")] = "",
) -> None:
    """Ends an experiment: from the next request on nobody is given its arms. Its report stays."""
    with with_system(state) as (config, log):
        wish = ExperimentRequest(what="stop", name=name, reason=reason, time_ms=wall_ms())
        said = _ask(log, config, wish)
        typer.echo(f"{name} is stopped, revision {said.revision}: {said.stands[name].why}")


@experiment.command()
def report(
    name: Annotated[str, typer.Argument(help="The experiment.")],
    state: StateOption = Path("state"),
    json: JsonOption = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots here, too.")] = None,
) -> None:
    """Shows what an experiment's arms do: effects with intervals that hold however often one looks."""
    with with_system(state) as (config, log):
        its = _meant(name, newest(log), config)
        if its.interleaves:
            _report_interleaving(log, config, its, json, html)
            return
        seen, notes = read_report(log, config, its)
        if html is not None:
            html.write_text(page(seen, notes), "utf-8")
        if json:
            _print_json({**msgspec.to_builtins(seen), "notes": notes})
        else:
            Console().print(*report_tables(seen, notes), sep="\n")


def _report_interleaving(
    log: Log, config: Config, its: Experiment, json: bool, html: Path | None
) -> None:
    if html is not None:
        raise ValueError(f"{its.name} is an interleaving, which has no page: leave --html out")
    began = began_ms(readable(log, CONTROL, Control), its.name)
    values, lines = read_interleaving(log, config, labels_of(config), its, began)
    if json:
        _print_json(values)
    else:
        Console().print(*lines, sep="\n")


def read_report(log: Log, config: Config, its: Experiment) -> tuple[Readout, list[str]]:
    """What an experiment has shown by now, and what one must know beside it."""
    labels = labels_of(config)
    metrics_needed(its, labels)
    fold = ExperimentFold(
        log, config, labels, its, began_ms(readable(log, CONTROL, Control), its.name)
    )
    while fold.read():
        pass
    seen = fold.readout()
    return seen, notes_of(fold, seen)


def newest(log: Log) -> Experiments:
    """The newest revision that can be read; an empty one where nobody has told of any."""
    said = Experiments(revision=0)
    for control in readable(log, CONTROL, Control):
        if isinstance(control, Experiments):
            said = control
    return said


def _meant(name: str, said: Experiments, config: Config) -> Experiment:
    """The experiment of a name, or of a file. Raises ValueError where there is none."""
    known, unread = parse_each(said, config.policy, labels_of(config))
    if name in unread:
        raise ValueError(f"{name} can't be read: {unread[name]}")
    for its in known:
        if its.name == name:
            return its
    if Path(name).is_file():
        texts = {name: Path(name).read_text("utf-8")}
        return read_experiments(texts, config.policy, labels_of(config))[0]
    names = ", ".join(its.name for its in known) or "none"
    raise ValueError(f"no experiment {name!r}, and no such file; there are {names}")


def _ask(log: Log, config: Config, wish: ExperimentRequest) -> Experiments:
    """Has the director do it; raises ValueError where it refuses, or doesn't answer."""
    said = newest(log)
    apply_request(
        ExperimentSet(said.configs, said.stands), wish, config.policy, labels_of(config), wall_ms()
    )
    (offset,) = log.append(CONTROL, [Append(0, b"", pack(wish))])
    until_s = time.monotonic() + _ANSWER_S
    while time.monotonic() < until_s:
        for control in readable(log, CONTROL, Control):
            if isinstance(control, Experiments) and control.answers == offset:
                if control.refused:
                    raise ValueError(control.refused)
                return control
        time.sleep(_LOOK_S)
    raise ValueError(
        f"the director didn't answer in {_ANSWER_S:.0f} s: see that it runs (`recsys status`); the wish "
        "stands on the log, and is granted once it does"
    )


def _print_json(found: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=1))
