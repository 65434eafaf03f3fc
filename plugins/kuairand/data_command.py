"""``recsys data kuairand``: downloads the official KuaiRand-Pure data set."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from plugins.kuairand.download import fetch_kuairand
from runtime.cli.common import exit_on

data = typer.Typer(help="Downloads data sets.", no_args_is_help=True, add_completion=False)
_FOLDER = Path("data/kuairand")  # where the demo looks for it


@data.callback()
def _data() -> None:
    """Makes the app a group; typer would otherwise run a single command directly."""


@data.command()
def kuairand(to: Annotated[Path, Option(help="Target folder.")] = _FOLDER) -> None:
    """Downloads KuaiRand-Pure from Zenodo, for `recsys replay` and `recsys demo`."""
    with exit_on(RuntimeError, status=1):
        existed = fetch_kuairand(to, typer.echo)
    typer.echo(f"{'downloaded already' if existed else 'unpacked'}: recsys replay {to}")
