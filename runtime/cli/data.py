"""``recsys data kuairand``: downloads the official KuaiRand-Pure data set."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from runtime.cli.common import exit_on
from runtime.jobs import dataset_download
from runtime.jobs.dataset_download import FOLDER, LICENCE, NotFetched

data = typer.Typer(help="Downloads data sets.", no_args_is_help=True, add_completion=False)


@data.callback()
def _data() -> None:
    """Makes the app a group; typer would otherwise run a single command directly."""


@data.command()
def kuairand(to: Annotated[Path, Option(help="Target folder.")] = FOLDER) -> None:
    """Downloads KuaiRand-Pure from Zenodo, for `recsys replay` and `recsys demo`."""
    typer.echo(LICENCE)
    with exit_on(NotFetched, status=1):
        existed = dataset_download.fetch_with_bar(dataset_download.KUAIRAND, to)
    typer.echo(f"{'downloaded already' if existed else 'unpacked'}: recsys replay {to}")
