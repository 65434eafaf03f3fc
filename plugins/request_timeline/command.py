"""``recsys trace``: the plug-in command."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from plugins.request_timeline.report import read_timeline, timeline_lines, timeline_values
from runtime.cli.common import JsonOption, RequestUserOption, StateOption, exit_on, show


def trace(
    request_id: Annotated[str, Argument(help="The request's id; or --latest.")] = "",
    latest: Annotated[bool, Option("--latest", help="Newest request that was learned.")] = False,
    state: StateOption = Path("state"),
    user: RequestUserOption = None,
    json: JsonOption = None,
) -> None:
    """Traces a list: its engagements, examples, steps, deltas, and the first answer by the new model.

    Works on a running or a stopped system, and needs no tracing. Exit status 2: it isn't on the log.
    """
    if bool(request_id) == latest:
        raise typer.BadParameter("give a request's id or --latest, and not both")
    with exit_on():
        timeline = read_timeline(request_id, state, user)
    show(timeline_values(timeline), json, lambda _: timeline_lines(timeline))
