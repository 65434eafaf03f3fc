"""``recsys explain`` and ``trace``: past answers, from log and snapshots alone."""

from pathlib import Path
from typing import Annotated, Final

import typer
from typer import Argument, Option

from replay.answer_check import DIFFERENT, EQUAL
from runtime.cli.common import JsonOption, RequestUserOption, StateOption, exit_on, show
from runtime.reports.explanation import check_answer, explanation_lines
from runtime.reports.timeline_report import read_timeline, timeline_lines, timeline_values

_STATUS: Final = {EQUAL: 0, DIFFERENT: 1}


def explain(
    request_id: Annotated[str, Argument(help="The request's id, as in the answer.")],
    state: StateOption = Path("state"),
    user: RequestUserOption = None,
    json: JsonOption = None,
) -> None:
    """Recomputes an answer from log and snapshots; changes nothing.

    Exit status 0: equal to the last bit; 1: something differs; 2: it can't be recomputed, and why.
    """
    with exit_on():
        verdict, values = check_answer(request_id, state, user)
    show(values, json, explanation_lines)
    raise typer.Exit(_STATUS.get(verdict, 2))


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
