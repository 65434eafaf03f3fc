"""``recsys app``: checks the definition of an app and shows what it means; changes that of a system."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from recsys.app.app_file import read_app
from recsys.app.definition import App
from runtime.cli.common import JsonOption, StateOption, exit_on, show, with_system
from runtime.reports.tables import plain_table
from runtime.supervision.run_file import AlreadyRuns, lock

app = typer.Typer(help="Definitions of apps.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Definitions of apps."""


@app.command()
def check(file: Annotated[Path, Argument(help="Definition, app.yaml.")], json: JsonOption = None) -> None:
    """Checks a definition. Prints its labels, and each column that the model reads."""
    with exit_on(ValueError):
        definition = read_app(file)
        features = definition.feature_set()
    values = {"digest": definition.digest, "features": features.digest, **features.columns}
    table = plain_table(("input", "columns"), _rows(definition), fold=("columns",))
    show(values, json, lambda _: [table])


@app.command()
def apply(
    file: Annotated[Path, Argument(help="Changed definition, app.yaml.")],
    state: StateOption = Path("state"),
    timeout_s: Annotated[float, Option(help="Maximum time of each step, in seconds.")] = 3_600.0,
) -> None:
    """Changes the features of a running system: logs them, and has a candidate learn them."""
    from runtime.jobs.app_change import AppChange, Parts  # imports torch: not for --help

    with with_system(state) as (config, log), exit_on(ValueError, TimeoutError, AlreadyRuns):
        with lock(state, "apply.lock"):  # two changes would end each other's folds
            parts = Parts(state, timeout_s, config.workers)
            name = AppChange(log, config, file, parts, typer.echo).run()
    if name:
        typer.echo(f"{name} learns them, and is judged: see `recsys shadow --state {state}`")
    else:
        typer.echo("the live model reads these features")


def _rows(definition: App) -> list[tuple[str, str]]:
    features = definition.feature_set()
    names = {name: list(dict.fromkeys(columns)) for name, columns in features.columns.items()}
    return [
        ("labels", ", ".join(definition.labels)),
        *((f"{name} ({len(features.columns[name])})", ", ".join(names[name])) for name in names),
    ]
