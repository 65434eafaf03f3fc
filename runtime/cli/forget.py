"""``recsys forget USER …``: deletes users, and unlearns their examples with ``--unlearn``."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from recsys.client import ApiError
from runtime.cli.common import StateOption, exit_on
from runtime.jobs.user_deletion import forget_users


def forget(
    users: Annotated[list[str], Argument(metavar="USER...", help="Ids of users.")],
    state: StateOption = Path("state"),
    unlearn: Annotated[
        bool,
        Option(
            "--unlearn",
            help="Also replay the model's history without the users' examples; waits for the result.",
        ),
    ] = False,
) -> None:
    """Deletes users: sessions and rows at once, log and archive at their next compaction."""
    with exit_on(), exit_on(ApiError):
        for line in forget_users(users, state, unlearn):
            typer.echo(line)
