"""``recsys part NAME``: runs one part in this process, with the configuration that ``recsys up`` wrote."""

import argparse
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from recsys.process.latency_tuning import freeze_gc
from recsys.process.part_process import Stop, run_part
from recsys.process.process_priority import lower_session_priority
from runtime.cli.common import StateOption
from runtime.supervision import launch_plan
from runtime.supervision.part_table import body, niceness
from runtime.supervision.processes import mark


def run(name: str, state: str) -> int:
    """Runs the part to its end; returns the exit status."""
    mark()
    config, _ = launch_plan.read(state)
    lower_session_priority(niceness(name))

    def work(stop: Stop) -> None:
        loop = body(name)  # imported here, so that the heartbeat reports an import error too
        freeze_gc()
        loop(config, stop)

    return run_part(name, config.state, work, config.logging.format)


def part(
    name: Annotated[str, Argument(help="Name of the part, as `recsys status` lists it.")],
    state: StateOption = Path("state"),
) -> None:
    """Runs one part of the system in this process."""
    raise typer.Exit(run(name, str(state)))


def main() -> int:
    """Entry point of ``python -m runtime.cli.part``, which the supervisor starts."""
    parser = argparse.ArgumentParser(prog="recsys part")
    parser.add_argument("name")
    parser.add_argument("--state", default="state")
    arguments = parser.parse_args()
    return run(arguments.name, arguments.state)


if __name__ == "__main__":
    sys.exit(main())
