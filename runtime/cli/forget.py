"""``recsys forget USER``: deletes a user, and unlearns their examples with ``--unlearn``."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from recsys.client import ApiError
from runtime.cli.common import StateOption, exit_on
from runtime.jobs.user_deletion import forget_user


def forget(
    user: Annotated[str, Argument(help="The user's id.")],
    state: StateOption = Path("state"),
    unlearn: Annotated[
        bool,
        Option(
            "--unlearn",
            help="Also replay the model's history without the user's examples; on a stopped system.",
        ),
    ] = False,
) -> None:
    """Deletes a user: session and rows at once, log and archive at their next compaction."""
    with exit_on(), exit_on(ApiError):
        for line in forget_user(user, state, unlearn):
            typer.echo(line)
