"""Options, error handling and output that several commands share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

StateOption = Annotated[Path, typer.Option(help="State folder of the system.")]
StateOverride = Annotated[
    Path | None, typer.Option(help="State folder; by default the configuration's.")
]
JsonOption = Annotated[bool, typer.Option(help="Print JSON instead of text.")]
ConfigOption = Annotated[str, typer.Option(help="laptop, cluster, or the path of a YAML file.")]
RegistryOption = Annotated[
    Path | None, typer.Option(help="Candidate registry; by default STATE/registry.")
]
RequestUserOption = Annotated[
    str | None, typer.Option(help="The request's user: only one log partition is searched.")
]


@contextmanager
def exit_on(*errors: type[Exception], status: int = 2) -> Iterator[None]:
    """Turns these errors into one line on stderr and an exit status."""
    try:
        yield
    except errors as error:
        # str() of a KeyError puts its message in quotes.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        fail(message)
        raise typer.Exit(status) from error


def fail(message: object) -> None:
    """Prints an error message; the caller chooses the exit status."""
    typer.secho(f"recsys: {message}", fg="red", err=True)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))


def show(value: Any, json: bool, lines: Callable[[Any], Sequence[str]]) -> None:
    """Prints a value as JSON, or as the lines that ``lines`` makes of it."""
    if json:
        print_json(value)
        return
    for line in lines(value):
        typer.echo(line)


def check_folders(*files: Path | None) -> None:
    """Raises ValueError for an output file whose folder is missing: before the work, not after it."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ValueError(
                f"{file}: there is no folder {file.parent}; create it, or name another"
            )
