"""``recsys rewind TIME``: returns the live model to a time, and learns again what came since."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from recsys.process.clock_file import clock_of
from runtime.cli.common import StateOption, check_folders, exit_on
from runtime.jobs import rewind as job
from runtime.jobs.time_option import parse_time
from runtime.supervision import launch_plan


def rewind(
    time: Annotated[str, Argument(help="Epoch milliseconds, or ISO UTC.")],
    without: Annotated[
        list[str],
        Option(
            metavar="USER|ACCOUNT|NETWORK|REQUESTS",
            help="Events to leave out; may be repeated: a user's, an API key's, a network's, those of a file "
            "of request ids, or everything.",
        ),
    ] = [],  # noqa: B006  # typer copies it
    answers: Annotated[
        Path | None, Option(help="File for the lists that were served since, as JSON lines.")
    ] = None,
    state: StateOption = Path("state"),
) -> None:
    """Returns the live line to its state at TIME and learns again what came since, but for what is named."""
    with exit_on():
        check_folders(answers)
        now_ms = clock_of(launch_plan.read(state)[0])()
        result = job.rewind(state, parse_time(time, 0.0) or 0, without, now_ms)
        for line in result.lines:
            typer.echo(line)
        typer.echo(f"the live line has answered {len(result.answers)} lists since that time")
        if answers is not None:
            job.write_answers(answers, result.answers)
