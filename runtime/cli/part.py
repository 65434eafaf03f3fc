"""``recsys part NAME``: runs a part in this process, with the configuration that ``recsys up`` wrote."""

import sys
import threading
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from recsys.process.latency_tuning import SWITCH_S, freeze_gc
from recsys.process.part_process import Stop, run_parts
from recsys.process.process_priority import lower_session_priority
from runtime.cli.common import StateOption
from runtime.supervision import launch_plan
from runtime.supervision.part_table import body, niceness
from runtime.supervision.processes import mark


def run(names: str, state: str) -> int:
    """Runs parts, separated by commas, to their end; returns the exit status."""
    mark()
    config, _ = launch_plan.read(state)
    parts, importing = names.split(","), threading.Lock()
    lower_session_priority(max(map(niceness, parts)))
    sys.setswitchinterval(SWITCH_S)  # parts of one process wait for each other

    def work(name: str, stop: Stop) -> None:
        with importing:
            # Imported here, so that the heartbeat reports an import error too.
            loop = body(name, config.workers)
            freeze_gc()
        loop(config, stop)

    bodies = {name: partial(work, name) for name in parts}
    return run_parts(bodies, config.state, config.logging.format)


def part(
    name: Annotated[str, Argument(help="Name of the part, as `recsys status` lists it; a,b for several.")],
    state: StateOption = Path("state"),
) -> None:
    """Runs one part of the system in this process."""
    raise typer.Exit(run(name, str(state)))


if __name__ == "__main__":  # as the supervisor starts it
    sys.exit(run(*sys.argv[1:]))
