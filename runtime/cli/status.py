"""``recsys status``: state, throughput and lag of each part, and the freshness of the served model."""

from pathlib import Path

import typer
from rich.console import Console

from runtime.cli.common import JsonOption, StateOption, print_json
from runtime.reports.status_table import status_table
from runtime.supervision import launch_plan, run_file
from runtime.supervision.system_status import gather


def status(state: StateOption = Path("state"), json: JsonOption = False) -> None:
    """Shows the state and the lag of each part. Exit status 1 unless every part is ready."""
    report = gather(state)
    console = Console()
    if json:
        print_json(report)
    elif (running := run_file.read(state)) is None:
        console.print(f"nothing was started in {state.resolve()}", highlight=False)
    else:
        console.print(status_table(report, running, launch_plan.read(state)[0]))
    raise typer.Exit(0 if report.running and report.ready else 1)
