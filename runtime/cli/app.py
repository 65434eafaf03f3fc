"""``recsys app check FILE``: checks the definition of an app, and shows what it means."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Argument

from recsys.app.app_file import read_app
from recsys.app.definition import App
from runtime.cli.common import JsonOption, exit_on, print_json
from runtime.reports.tables import plain_table

app = typer.Typer(help="Definitions of apps.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Definitions of apps."""


@app.command()
def check(
    file: Annotated[Path, Argument(help="Definition, app.yaml.")], json: JsonOption = False
) -> None:
    """Checks a definition. Prints its labels, and each column that the model reads."""
    with exit_on(ValueError):
        definition = read_app(file)
        features = definition.feature_set()
    if json:
        print_json({"digest": definition.digest, "features": features.digest, **features.columns})
        return
    console = Console()
    console.print(plain_table(("input", "columns"), _rows(definition), fold=("columns",)))


def _rows(definition: App) -> list[tuple[str, str]]:
    features = definition.feature_set()
    names = {name: list(dict.fromkeys(columns)) for name, columns in features.columns.items()}
    return [
        ("labels", ", ".join(definition.labels)),
        *((f"{name} ({len(features.columns[name])})", ", ".join(names[name])) for name in names),
    ]
