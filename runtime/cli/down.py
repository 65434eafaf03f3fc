"""``recsys down``: ends what ``recsys up`` started in a state folder, and nothing else."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from runtime.supervision import run_file as runs
from runtime.supervision.processes import alive


def down(
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
) -> None:
    """Ends what `recsys up` started in a state folder. Nothing running is fine."""
    raise typer.Exit(end(state, Console()))


def end(state: Path, console: Console) -> int:
    """0: nothing runs any more; 1: something of it still does."""
    running = runs.read(state)
    if running is None or not any(map(alive, [running.supervisor, *running.processes])):
        console.print(f"nothing runs in {state.resolve()}", highlight=False)
        return 0
    by_itself = runs.stop(state, running)
    last = runs.read(state) or running
    left = [part.name for part in last.parts if part.process and alive(part.process)]
    if left:
        console.print(f"[red]recsys:[/red] still running: {', '.join(left)}")
        return 1
    how = "ended" if by_itself else "ended, though the supervisor was gone or didn't"
    console.print(f"{how}: {', '.join(part.name for part in running.parts)}", highlight=False)
    return 0
