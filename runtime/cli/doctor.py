"""``recsys doctor``: checks this machine and prints each problem with its remedy."""

from dataclasses import asdict

import typer

from recsys.config.loader import load
from runtime.cli.common import ConfigOption, JsonOption, show
from runtime.supervision.machine import observe
from runtime.supervision.machine_checks import Check, run_checks


def doctor(config: ConfigOption = "laptop", json: JsonOption = None) -> None:
    """Checks this machine. Exit status 1 if the system can't run on it."""
    results = run_checks(observe(load(config)))
    show([asdict(check) for check in results], json, lambda _: [_line(c) for c in results])
    if any(check.state == "fail" for check in results):
        raise typer.Exit(1)


def _line(check: Check) -> str:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.state]
    remedy = f"  ->  {check.remedy}" if check.remedy else ""
    state = typer.style(f"{check.state:<4}", fg=colour)
    return f"{state}  {check.name:<16} {check.finding}{remedy}"
