"""``recsys restart serve``: new replicas in the place of the old ones, with no request that fails.

The part that drives Serve is asked through a file, and says in its heartbeat which request it has fulfilled.
It starts a replica beside the old ones; each takes traffic once it has caught up with the log, and only then
does an old one leave: it refuses new connections, answers what it has begun, and writes what waits.
"""

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from recsys.process.part_process import Beat, read_beat, run_folder, write_atomically
from runtime.supervision import run_file as runs
from runtime.supervision.processes import alive

RESTARTABLE: Final = "serve"
GAUGE: Final = "restarts"  # of the heartbeat: the last request that was fulfilled


def restart(
    part: Annotated[str, typer.Argument(help="The part: serve.")],
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
    timeout_s: Annotated[float, typer.Option(help="How long to wait for it.")] = 600.0,
) -> None:
    """Replaces the replicas one by one, while requests are answered."""
    try:
        asked = ask(part, state)
        typer.echo("new replicas start; an old one leaves once a new one has caught up")
        wait(state, asked, timeout_s)
    except (ValueError, TimeoutError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    typer.echo("all replicas are new")


def ask(part: str, state: Path) -> int:
    """Asks for it; returns the request's number. Raises ValueError where nobody is there to be asked."""
    if part != RESTARTABLE:
        raise ValueError(
            f"part is {part!r}, expected {RESTARTABLE!r}: any other one may be ended (kill PID, see "
            "`recsys status`), and `recsys up` starts it again"
        )
    beat = _beat(state)
    running = runs.read(state)
    if beat is None or beat.state != "ready" or running is None or not alive(running.supervisor):
        raise ValueError(
            f"{RESTARTABLE} isn't ready in {state.resolve()}: see `recsys status --state {state}`"
        )
    number = requested(state) + 1
    write_atomically(_file(state), str(number).encode())
    return number


def wait(state: Path, number: int, timeout_s: float) -> None:
    """Returns once the request is fulfilled; raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while (beat := _beat(state)) is None or beat.gauges.get(GAUGE, -1.0) < number:
        if time.monotonic() > deadline_s:
            raise TimeoutError(
                f"not all replicas are new after {timeout_s:g} s; the old ones answer on, and it goes on "
                f"trying: see `recsys status --state {state}` and {run_folder(state) / 'serve.log'}"
            )
        time.sleep(0.2)


def requested(state: str | Path) -> int:
    """The number of the newest request; 0 before the first."""
    try:
        return int(_file(state).read_text())
    except (OSError, ValueError):
        return 0


def _file(state: str | Path) -> Path:
    return run_folder(state) / f"{RESTARTABLE}.restart"


def _beat(state: Path) -> Beat | None:
    return read_beat(run_folder(state) / f"{RESTARTABLE}.json")
