"""``recsys experiment page``: writes an experiment's report as an HTML page with plots."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument

from plugins.experiment_page.page import render_page
from runtime.cli.common import StateOption, check_folders, exit_on, with_system
from runtime.jobs.director_requests import find_experiment, newest_experiments
from runtime.reports.experiment_summary import read_report


def page(
    name: Annotated[str, Argument(help="Name of the experiment.")],
    file: Annotated[Path, Argument(help="The page to write.")],
    state: StateOption = Path("state"),
) -> None:
    """Writes an experiment's report as an HTML page with plots: one file, without scripts."""
    with exit_on(ValueError):
        check_folders(file)
    with with_system(state) as (config, log):
        experiment = find_experiment(name, newest_experiments(log), config)
        if experiment.interleaves:
            raise ValueError(
                f"{name} is an interleaving, which has no page: see `recsys experiment report {name}`"
            )
        readout, notes = read_report(log, config, experiment)
        file.write_text(render_page(readout, notes), "utf-8")
    typer.echo(f"{name}: {readout.verdict}. Wrote {file}")
