"""``recsys trace REQUEST_ID``: timeline of one request, from the log alone."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from recsys.log.protocol import LogLost, LogUnavailable
from runtime.cli.common import JsonOption, RequestUserOption, StateOption, exit_on, print_json
from runtime.reports.timeline_report import read_timeline, timeline_lines, timeline_values


def trace(
    request_id: Annotated[str, Argument(help="The request's id; or --latest.")] = "",
    latest: Annotated[bool, Option("--latest", help="Newest request that was learned.")] = False,
    state: StateOption = Path("state"),
    user: RequestUserOption = None,
    json: JsonOption = False,
) -> None:
    """Traces a list: its engagements, examples, steps, deltas, and the first answer by the new model.

    Works on a running or a stopped system, and needs no tracing. Exit status 2: it isn't on the log.
    """
    if bool(request_id) == latest:
        raise typer.BadParameter("give a request's id or --latest, and not both")
    with exit_on(FileNotFoundError, KeyError, LogLost, LogUnavailable):
        timeline = read_timeline(request_id, state, user)
    if json:
        print_json(timeline_values(timeline))
    else:
        typer.echo("\n".join(timeline_lines(timeline)))
