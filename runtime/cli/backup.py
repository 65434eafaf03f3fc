"""``recsys backup`` and ``restore``: a copy of a state folder while its system runs, and the way back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from runtime.cli.common import JsonOption, StateOption, exit_on, show
from runtime.jobs.backup import Backup, Restored, back_up
from runtime.jobs.backup import restore as restore_from


def backup(
    target: Annotated[Path, Argument(help="New folder for the backup, on another disk.")],
    state: StateOption = Path("state"),
    incremental: Annotated[
        Path | None, Option(help="Earlier backup beside it; equal files become hard links to it.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Backs up the state folder of a running or stopped system, without secrets.

    Exit status 0: it is intact; 1: the state folder has damage, and so has the backup; 2: there is no backup.
    """
    with exit_on():
        done = back_up(state, target, incremental)
    show(done, json, _backup_lines)
    raise typer.Exit(1 if done.damage else 0)


def _backup_lines(done: Backup) -> Iterator[str]:
    yield f"{len(done.files)} files, {done.nbytes / 1e6:,.1f} MB, of log {done.log_id}"
    for damage in done.damage:
        yield f"DAMAGED  {damage.where}: {damage.what}"


def restore(
    backup: Annotated[Path, Argument(help="Folder of the backup.")],
    state: Annotated[Path, Option(help="New state folder.")],
    erasures: Annotated[
        Path | None,
        Option(help="Later state folder or backup; users whom it erased are erased here, too."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Restores a backup into a new state folder, if all of it is intact; ``recsys up`` then continues it."""
    with exit_on():
        done = restore_from(backup, state, erasures)
    show(done, json, lambda done: _restore_lines(done, state))


def _restore_lines(done: Restored, state: Path) -> Iterator[str]:
    yield f"restored {len(done.backup.files)} files into {state}; secrets are made by `recsys up`"
    if done.erased is None:
        yield (
            "users who were erased after the backup are back: erase them before `recsys up` with "
            f"`recsys forget USER … --state {state}`, or restore with --erasures"
        )
    else:
        yield f"{len(done.erased)} users were erased after the backup: erased here, too, as the system runs"
