"""``recsys up``: starts every part, watches it, and ends what it started."""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from recsys.config.loader import BadSettings
from recsys.config.policy_config import check_rules, check_weights
from recsys.config.system_config import Config, digest
from recsys.events.field_schema import CATEGORICAL
from recsys.features.feature_set_file import feature_set
from recsys.observability.log_lines import log_to_file
from recsys.observability.otlp_export import check_installed
from recsys.process.part_process import run_folder
from runtime.reports.status_table import parts_table, said_beyond_loopback
from runtime.supervision import launch_plan as plans
from runtime.supervision import run_file as runs
from runtime.supervision.acceptance_file import check_accepted
from runtime.supervision.launch_plan import EMBEDDED_KAFKA, Plan
from runtime.supervision.part_table import table
from runtime.supervision.run_file import Running
from runtime.supervision.supervisor import Change
from runtime.supervision.supervisor_loop import Runner

_READY_S: Final = 240.0  # how long --detach waits for all parts
_DRAW_EVERY_S: Final = 0.25


def up(
    config: Annotated[str, typer.Option(help="laptop, cluster, or a YAML file.")] = "laptop",
    state: Annotated[
        Path | None, typer.Option(help="The state folder, instead of the configuration's.")
    ] = None,
    log: Annotated[
        str, typer.Option(help="kafka: with an embedded broker; or kafka://host:port.")
    ] = "",
    detach: Annotated[bool, typer.Option(help="Return once everything is ready.")] = False,
    viewers: Annotated[float, typer.Option(help="Requests a second of simulated viewers.")] = 0.0,
    only: Annotated[str, typer.Option(help="Only these parts (a,b) and what they need.")] = "",
) -> None:
    """Starts every part and watches it. Ctrl-C, or `recsys down`, ends what it started."""
    from recsys.config.loader import load

    settings = load(config)
    if state is not None:
        settings = replace(settings, state=str(state))
    if log:
        settings = replace(settings, log=replace(settings.log, url=log_url(log)))
    settings = replace(settings, state=str(Path(settings.state).resolve()))
    names = [name for name in only.split(",") if name]
    raise typer.Exit(start(settings, detach=detach, viewers=viewers, only=names))


def log_url(log: str) -> str:
    """``kafka`` is a broker of our own."""
    return EMBEDDED_KAFKA if log == "kafka" else log


def start(
    config: Config, *, detach: bool = False, viewers: float = 0.0, only: list[str] | None = None,
    control_room: bool = False,
) -> int:  # fmt: skip
    """Starts a configuration; returns the exit status: 0 also where it runs already, 1 where another does, 2
    where its settings are wrong. ``control_room``: with one, whatever the configuration says."""
    console = Console()
    try:
        with runs.held(config.state):
            left = runs.end_leftovers(config.state)
            if left:
                console.print(f"ended {left} parts that a killed `recsys up` had left running")
            try:
                resolved, plan = _planned(config, viewers, only or [], control_room)
            except (plans.PortTaken, ValueError) as error:
                console.print(f"[red]recsys:[/red] {error}", highlight=False)
                return 2 if isinstance(error, BadSettings) else 1
            plans.write(resolved, plan)
            if beyond := said_beyond_loopback(resolved):
                console.print(f"[yellow]recsys:[/yellow] {beyond}", highlight=False, soft_wrap=True)
            if not detach:
                _run(resolved, plan, console)
                return 0
    except runs.AlreadyRuns:
        return _say_what_runs(config, console)
    return _detach(resolved, console)


def _planned(
    config: Config, viewers: float, only: list[str], control_room: bool = False
) -> tuple[Config, Plan]:
    from training.lines.line import spec_of  # imports torch: not for --help

    address = os.environ.get("RAY_ADDRESS", "")
    resolved, plan = plans.resolve(
        config, viewers=viewers, only=only, ray_address=address, control_room=control_room
    )
    features = feature_set(resolved)
    check_weights(resolved.policy, features.schema.labels)
    check_rules(resolved.policy, features.schema.names("item", CATEGORICAL))
    check_accepted(resolved, features)
    try:
        check_installed(resolved.tracing.endpoint)
        spec_of(resolved)  # else a part tells, that never gets ready
    except ValueError as error:
        raise BadSettings(str(error)) from None
    table(plan)  # an unknown name in ``only`` is told before anything starts
    return resolved, plan


def _run(config: Config, plan: Plan, console: Console | None) -> None:
    log_to_file("up", run_folder(config.state) / "up.log", config.logging.format)
    if console is None:
        Runner(config, plan).run()
    elif not console.is_terminal:
        Runner(config, plan, _Lines(config, console).show).run()
    else:
        with Live(console=console, auto_refresh=False) as live:
            Runner(config, plan, _Table(config, live).show).run()


class _Table:
    """The live table, redrawn a few times a second."""

    def __init__(self, config: Config, live: Live) -> None:
        self._config, self._live, self._drawn_at = config, live, 0.0

    def show(self, running: Running, changes: list[Change]) -> None:
        now = time.monotonic()
        if changes or now - self._drawn_at >= _DRAW_EVERY_S:
            self._live.update(parts_table(running, self._config), refresh=True)
            self._drawn_at = now


class _Lines:
    """One line for each change, where there is no terminal; the table once all is ready."""

    def __init__(self, config: Config, console: Console) -> None:
        self._config, self._console, self._was_ready = config, console, False

    def show(self, running: Running, changes: list[Change]) -> None:
        for change in changes:
            why = f" ({change.reason})" if change.reason else ""
            self._console.print(f"{change.part}: {change.state}{why}", highlight=False)
        if running.ready and not self._was_ready:
            self._console.print(parts_table(running, self._config))
        self._was_ready = running.ready


def _say_what_runs(config: Config, console: Console) -> int:
    running = runs.read(config.state)
    if running is None:
        console.print("[red]recsys:[/red] another `recsys up` is just starting here")
        return 1
    resolved, _ = plans.read(config.state)
    console.print(parts_table(running, resolved))
    if running.asked != digest(config):
        console.print(
            f"[red]recsys:[/red] {config.state} runs with another configuration: "
            f"`recsys down --state {config.state}` first",
            highlight=False,
        )
        return 1
    console.print(
        f"already running, supervised by process {running.supervisor.pid}", highlight=False
    )
    return 0


def _detach(config: Config, console: Console) -> int:
    """Starts the supervisor as a process of its own, and returns when everything is ready."""
    folder = run_folder(config.state)
    with (folder / "up.out").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli.up", "--state", config.state],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + _READY_S
    running: Running | None = None
    while time.monotonic() < deadline and process.poll() is None:
        running = runs.read(config.state)
        if running is not None and running.supervisor.pid == process.pid and running.ready:
            console.print(parts_table(running, config))
            console.print(f"runs in the background; `recsys down --state {config.state}` ends it")
            return 0
        if running is not None and running.supervisor.pid == process.pid and running.lost:
            break
        time.sleep(0.1)
    if running is not None:
        console.print(parts_table(running, config))
    what = f"is not ready after {_READY_S:.0f} s, and goes on trying"
    if process.poll() is not None:
        what = "ended"
    elif running is not None and running.lost:
        what = "can't get ready, and waits for `recsys down`"
    console.print(
        f"[red]recsys:[/red] the supervisor {what}; see {folder}/up.log and {folder}/up.out"
    )
    return 1


def main() -> int:
    """For ``--detach``: supervises what was written to the state folder."""
    parser = argparse.ArgumentParser(prog="runtime.cli.up")
    parser.add_argument("--state", required=True)
    state = parser.parse_args().state
    with runs.held(state):
        _run(*plans.read(state), None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
