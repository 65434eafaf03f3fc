"""Command lines of benches and studies: shared options, JSON output, and errors as exit status 2."""

import functools
import inspect
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from runtime.cli.common import check_folders

Figures = dict[str, Any]
Log = Callable[[str], None]
Json = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file; -: print them.")]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
_PACKAGES: Final = (
    "torch", "fbgemm-gpu-cpu", "torchrec", "numpy", "faiss-cpu", "polars", "ray", "uvicorn", "fastapi",
    "redis",
)  # fmt: skip

log_progress: Final[Log] = functools.partial(typer.echo, err=True)


def no_log(text: str) -> None:
    """Default for ``Log`` parameters: drops the text."""


def bench_command(app: typer.Typer, name: str = "") -> Callable[..., Callable[..., Any]]:
    """Registers a function that returns a bench's figures. The command prints them as JSON, with the command
    line, the machine and the package versions; ``--json`` also writes them to a file."""

    def register(measure: Callable[..., Figures]) -> Callable[..., Any]:
        bench = name or measure.__name__

        def run(options: dict[str, Any], json_file: Path | None) -> None:
            check_folders(json_file)
            measured = measure(**options)
            seed = {"seed": options["seed"]} if "seed" in options else {}
            figures = {"bench": bench, "command": _command_line(bench, options), **seed}
            figures |= {"machine": machine(), "versions": _versions(), **measured}
            write_json(Path("-"), figures)
            if json_file != Path("-"):
                write_json(json_file, figures)

        return app.command(bench)(_with_json_option(measure, run))

    return register


def study_command(measure: Callable[..., Figures | Iterable[Figures]]) -> Callable[..., None]:
    """Wraps a function that prints and returns a study's figures: ``--json`` writes them to a file. A
    function that yields figures several times has its file rewritten each time, so that finished parts
    survive a stop."""

    def run(options: dict[str, Any], json_file: Path | None) -> None:
        check_folders(json_file)
        began_s = time.monotonic()
        results = measure(**options)
        for figures in [results] if isinstance(results, dict) else results:
            seconds = round(time.monotonic() - began_s, 1)
            figures = {"study": measure.__name__, **figures, "seconds": seconds}
            write_json(json_file, figures | {"machine": machine()})

    return _with_json_option(measure, run)


def _with_json_option(
    measure: Callable[..., Any], run: Callable[[dict[str, Any], Path | None], None]
) -> Callable[..., None]:
    """A typer function with the options of ``measure`` and ``--json``."""

    @functools.wraps(measure)
    def command(json_file: Path | None, **options: Any) -> None:
        try:
            run(options, json_file)
        except ValueError as error:
            typer.secho(f"recsys: {error}", fg="red", err=True)
            raise typer.Exit(2) from error

    signature = inspect.signature(measure)
    json_option = inspect.Parameter(
        "json_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Json
    )
    parameters = [*signature.parameters.values(), json_option]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**measure.__annotations__, "json_file": Json}
    return command


def check_at_least(minimum: int, **options: int) -> None:
    """Raises ValueError for an option below the minimum."""
    for name, value in options.items():
        if value < minimum:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {value}, expected {minimum} or more")


def write_json(file: Path | None, figures: Mapping[str, Any]) -> None:
    """Writes figures to a file; prints them for ``-``."""
    if file == Path("-"):
        typer.echo(json.dumps(figures, indent=1))
    elif file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def machine() -> Figures:
    """The load shows whether other work ran beside: then figures are comparable within one run only."""
    cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "load_1m": round(os.getloadavg()[0], 2)}


def _command_line(bench: str, options: Mapping[str, Any]) -> str:
    if "apart" in options:  # on by default, so only its negative form is shown
        options = {**options, "apart": False, "together": not options["apart"]}
    given = {f"--{key.replace('_', '-')}": value for key, value in options.items()}
    words = [key if value is True else f"{key} {value}" for key, value in given.items()
             if value is not False and value != ""]  # fmt: skip
    return f"recsys bench {bench} {' '.join(words)}"


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
