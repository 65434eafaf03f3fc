"""``recsys status``, ``metrics``, ``restart`` and ``down``: commands on a running system."""

import os
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option

from runtime.cli.common import JsonOption, StateOption, exit_on, fail, show
from runtime.parts.metrics import Server, text
from runtime.parts.restart import request_restart, wait
from runtime.reports.status_table import status_table
from runtime.supervision import launch_plan, run_file
from runtime.supervision.processes import STATE, alive
from runtime.supervision.system_status import gather


def status(state: StateOption = Path("state"), json: JsonOption = None) -> None:
    """Shows the state and the lag of each part. Exit status 1 unless every part is ready."""
    report, running = gather(state), run_file.read(state)
    lines: list[Any] = [f"nothing was started in {state.resolve()}"]
    if running is not None:
        lines = [status_table(report, running, launch_plan.read(state)[0])]
        if not report.running and (holder := run_file.holder(state)):
            lines.append(f"{holder} uses the folder: ask on that machine, if it is another one")
    show(report, json, lambda _: lines)
    raise typer.Exit(0 if report.running and report.ready else 1)


def metrics(
    state: StateOption = Path("state"),
    port: Annotated[int, Option(help="Port to serve on until Ctrl-C; 0: print once.")] = 0,
    host: Annotated[str, Option(help="Address to bind to.")] = "127.0.0.1",
) -> None:
    """Prints or serves the parts' Prometheus metrics."""
    if not port:
        typer.echo(text(state).decode(), nl=False)
        return
    with Server(host, port, lambda: text(state)) as server:
        typer.echo(f"http://{host}:{server.port}/metrics, until Ctrl-C")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


def restart(
    part: Annotated[str, Argument(help="Name of the part: serve.")] = "serve",
    state: StateOption = Path("state"),
    timeout_s: Annotated[float, Option(help="Maximum time to wait, in seconds.")] = 600.0,
) -> None:
    """Replaces the serving replicas one by one, without downtime."""
    with exit_on(ValueError, TimeoutError):
        number = request_restart(part, state)
        typer.echo("new replicas start; an old one leaves once a new one has caught up")
        wait(state, number, timeout_s)
    typer.echo("all replicas are new")


def down(state: StateOption = Path("state")) -> None:
    """Stops the system of a state folder. Exit status 0 if nothing runs afterwards, else 1."""
    raise typer.Exit(end(state, Console()))


def end(state: Path, console: Console) -> int:
    """Stops the system; returns the exit status: 1 where a part still runs, or a job of the system asks."""
    if os.environ.get(STATE) == str(state.resolve()):
        fail("this process would end with the system: call `recsys down` from outside, as in a shell")
        return 1
    running = run_file.read(state)
    if running is None or not running.any_alive():
        if holder := run_file.holder(state):
            fail(f"no supervisor runs in {state.resolve()}, but {holder} uses it; nothing was stopped")
            return 1
        console.print(f"nothing runs in {state.resolve()}", highlight=False)
        return 0
    clean = run_file.stop(state, running)
    last = run_file.read(state) or running
    left = [part.name for part in last.parts if part.process and alive(part.process)]
    if left:
        fail(f"still running: {', '.join(left)}")
        return 1
    how = "stopped" if clean else "stopped (the supervisor was gone or did not stop all parts)"
    console.print(f"{how}: {', '.join(part.name for part in running.parts)}", highlight=False)
    return 0
