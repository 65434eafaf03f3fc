"""``recsys down``: stops the processes that ``recsys up`` started in a state folder, and no others."""

from pathlib import Path

import typer
from rich.console import Console

from runtime.cli.common import StateOption
from runtime.supervision import run_file
from runtime.supervision.processes import alive


def down(state: StateOption = Path("state")) -> None:
    """Stops the system of a state folder. Exit status 0 if nothing runs afterwards, else 1."""
    raise typer.Exit(end(state, Console()))


def end(state: Path, console: Console) -> int:
    """Stops the system; returns the exit status: 1 where a part still runs."""
    running = run_file.read(state)
    if running is None or not running.any_alive():
        console.print(f"nothing runs in {state.resolve()}", highlight=False)
        return 0
    clean = run_file.stop(state, running)
    last = run_file.read(state) or running
    left = [part.name for part in last.parts if part.process and alive(part.process)]
    if left:
        console.print(f"[red]recsys:[/red] still running: {', '.join(left)}")
        return 1
    how = "stopped" if clean else "stopped (the supervisor was gone or did not stop all parts)"
    console.print(f"{how}: {', '.join(part.name for part in running.parts)}", highlight=False)
    return 0
