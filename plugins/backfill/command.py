"""``recsys backfill``: the plug-in command."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from plugins.backfill.archive_copy import copy_filled
from runtime.cli.common import JsonOption, exit_on, show


def backfill(
    folder: Annotated[Path, Argument(help="A state folder or an archive.")],
    out: Annotated[Path, Option(help="Folder for the examples; must not exist yet.")],
    feature_file: Annotated[
        Path | None, Option("--features", help="Wanted feature set file; by default the folder's.")
    ] = None,
    from_: Annotated[str | None, Option("--from", help="First day, e.g. 2026-11-24.")] = None,
    until: Annotated[str | None, Option(help="Day after the last one.")] = None,
    json: JsonOption = None,
) -> None:
    """Adds features that weren't logged, computed from raw events as of each impression.

    Exit status 0: examples were written; 2: none could be.
    """
    with exit_on(FileNotFoundError, ValueError):
        if out.exists():
            raise ValueError(f"--out is {out}, which exists already: name a new folder")
        counts = copy_filled(folder, out, feature_file, from_, until)
    show(counts, json, lambda counts: [f"{count:>10} {why}" for why, count in counts.items()])
    raise typer.Exit(0 if any(list(counts.values())[:2]) else 2)
