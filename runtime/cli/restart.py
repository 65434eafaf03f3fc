"""``recsys restart serve``: replaces the serving replicas without a failed request."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from runtime.cli.common import StateOption, exit_on
from runtime.parts.restart import request_restart, wait


def restart(
    part: Annotated[str, Argument(help="Name of the part: serve.")],
    state: StateOption = Path("state"),
    timeout_s: Annotated[float, Option(help="Maximum time to wait, in seconds.")] = 600.0,
) -> None:
    """Replaces the serving replicas one by one, without downtime."""
    with exit_on(ValueError, TimeoutError):
        number = request_restart(part, state)
        typer.echo("new replicas start; an old one leaves once a new one has caught up")
        wait(state, number, timeout_s)
    typer.echo("all replicas are new")
