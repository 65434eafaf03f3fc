"""``recsys demo``: starts a whole system with warm-up data, simulated viewers and the feed page.

``--check`` does the same unattended, measures it as a viewer, prints one JSON object and ends. The command is
light, so that it says something at once; the work is in demo_run.py.
"""

import signal
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from typer import Option

VIEWERS: Final = 1.0  # lists per second
LIMIT: Final = 40_000  # impressions that two cores learn in a few minutes with all parts running


def demo(
    check: Annotated[bool, Option(help="Measure unattended, print JSON, and end.")] = False,
    promotion: Annotated[
        bool, Option(help="Show a candidate's life: offline job, shadow, canary, promotion, rollback.")
    ] = False,
    state: Annotated[
        Path | None, Option(help="State folder; by default state, with --check a new one.")
    ] = None,
    log: Annotated[str, Option(help="sqlite, kafka (an embedded broker), or kafka://host:port.")] = "sqlite",
    viewers: Annotated[float, Option(help="Lists per second of simulated viewers.")] = VIEWERS,
    limit: Annotated[int, Option(help="Number of a data set's last impressions to warm up with.")] = LIMIT,
    json: Annotated[Path | None, Option(help="File for the output of --check.")] = None,
) -> None:
    """Starts a whole system and warms it up with data. Ctrl-C ends it."""
    signal.signal(signal.SIGTERM, _interrupt)
    typer.echo("reading the configuration and the data", file=sys.stderr if check else None)
    from examples.short_video import demo_run  # seconds, with all that it imports

    if check:
        raise typer.Exit(demo_run.check(state, log, limit, json))
    raise typer.Exit(demo_run.run(state, log, viewers, limit, promotion))


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
