"""``recsys doctor``: checks this machine and prints each problem with its remedy."""

from dataclasses import asdict
from typing import Annotated

import typer
from typer import Option

from recsys.config.loader import load
from runtime.cli.common import ConfigOption, print_json
from runtime.supervision.machine import observe
from runtime.supervision.machine_checks import Check, run_checks


def doctor(
    config: ConfigOption = "laptop",
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Checks this machine. Exit status 1 if the system can't run on it."""
    results = run_checks(observe(load(config)))
    if as_json:
        print_json([asdict(check) for check in results])
    else:
        for check in results:
            _print(check)
    if any(check.state == "fail" for check in results):
        raise typer.Exit(1)


def _print(check: Check) -> None:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.state]
    remedy = f"  ->  {check.remedy}" if check.remedy else ""
    state = typer.style(f"{check.state:<4}", fg=colour)
    typer.echo(f"{state}  {check.name:<16} {check.found}{remedy}")
