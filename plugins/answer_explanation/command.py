"""``recsys explain``: a past answer, from log and snapshots alone."""

from pathlib import Path
from typing import Annotated, Final

import typer
from typer import Argument

from plugins.answer_explanation.answer_check import DIFFERENT, EQUAL
from plugins.answer_explanation.explanation import check_answer, explanation_lines
from runtime.cli.common import JsonOption, RequestUserOption, StateOption, exit_on, show

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
