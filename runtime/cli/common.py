"""Options, error handling and output that several commands share."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import msgspec
import typer
from rich.console import Console
from typer import Option

from recsys.log.protocol import Log, LogLost, LogUnavailable

if TYPE_CHECKING:
    from recsys.config.system_config import Config

StateOption = Annotated[Path, Option(help="State folder of the system.")]
StateOverride = Annotated[Path | None, Option(help="State folder; by default the configuration's.")]


def _checked(json: Path | None) -> Path | None:
    """Exits with status 2 where the folder of the file is missing: before the work, not after it."""
    with exit_on(ValueError):
        check_folders(json)
    return json


JsonOption = Annotated[
    Path | None, Option("--json", help="Write JSON to this file; -: to stdout.", callback=_checked)
]
ConfigOption = Annotated[str, Option(help="laptop, cluster, or the path of a YAML file.")]
RegistryOption = Annotated[Path | None, Option(help="Candidate registry; default: STATE/registry.")]
RequestUserOption = Annotated[str | None, Option(help="The request's user, for a quick search.")]


@contextmanager
def exit_on(*errors: type[Exception], status: int = 2) -> Iterator[None]:
    """Turns these errors, by default those of a system's folder and log, into one line on stderr and an exit
    status."""
    errors = errors or (OSError, ValueError, KeyError, LogLost, LogUnavailable)
    try:
        yield
    except errors as error:
        # str() of a KeyError puts its message in quotes.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        fail(message)
        raise typer.Exit(status) from error


@contextmanager
def with_system(state: Path) -> "Iterator[tuple[Config, Log]]":
    """Opens a system's configuration and log; prints errors in one line and exits with status 2."""
    from runtime.supervision.launch_plan import open_system

    with exit_on(), open_system(state) as system:
        yield system


def fail(message: object) -> None:
    """Prints an error message; the caller chooses the exit status."""
    typer.secho(f"recsys: {message}", fg="red", err=True)


def from_checkout(path: str) -> Any:
    """A function ``module:name`` of the benchmarks or examples, which a checkout has. Exits with
    status 2 where they aren't installed."""
    module, name = path.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        fail(f"this needs a checkout of the repository: there is no {error.name}")
        raise typer.Exit(2) from error


def show(value: Any, json: Path | None, lines: Callable[[Any], Iterable[Any]]) -> None:
    """Prints the lines and tables that ``lines`` makes of a value; writes it to a file as JSON, or prints
    JSON alone for ``-``."""
    if json is not None:
        text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
        if json == Path("-"):
            return typer.echo(text)
        with exit_on(OSError):
            json.write_text(f"{text}\n", "utf-8")
    for line in lines(value):
        if isinstance(line, str):
            typer.echo(line)
        else:
            Console().print(line)


def check_folders(*files: Path | None) -> None:
    """Raises ValueError for an output file whose folder is missing."""
    for file in files:
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"{file}: there is no folder {file.parent}; create it, or name another")


def options_from(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: gives a command with ``**values`` one option per field of a dataclass of defaults."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(kind, include_extras=True)
        signature = inspect.signature(command, eval_str=True)
        named = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(kind)
        ]
        named += [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        setattr(command, "__signature__", signature.replace(parameters=named))  # noqa: B010
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in named}
        return command

    return decorate
