"""``recsys part NAME``: one part in this process, with the configuration that ``recsys up`` wrote."""

import argparse
import sys
from pathlib import Path
from typing import Annotated

import typer


def run(name: str, state: str) -> int:
    """Runs the part to its end; returns the exit status."""
    from recsys.process.gc_control import settle
    from recsys.process.part_process import Stop, run_part
    from recsys.process.process_priority import session_steps_back
    from runtime.supervision import launch_plan as plans
    from runtime.supervision.part_table import body, niceness
    from runtime.supervision.processes import mark

    mark()
    config, _ = plans.read(state)
    session_steps_back(niceness(name))

    def work(stop: Stop) -> None:
        loop = body(
            name
        )  # imported inside, so that a failure of it is told in the heartbeat, like any
        settle()
        loop(config, stop)

    return run_part(name, config.state, work, config.logging.format)


def part(
    name: Annotated[str, typer.Argument(help="Of the table that `recsys status` shows.")],
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
) -> None:
    """Runs one part in this process."""
    raise typer.Exit(run(name, str(state)))


def main() -> int:
    """For the supervisor, which starts ``python -m runtime.cli.part``."""
    parser = argparse.ArgumentParser(prog="recsys part")
    parser.add_argument("name")
    parser.add_argument("--state", default="state")
    arguments = parser.parse_args()
    return run(arguments.name, arguments.state)


if __name__ == "__main__":
    sys.exit(main())
