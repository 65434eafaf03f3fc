"""``recsys backup`` and ``restore``: a copy of a state folder while its system runs, and the way back."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from runtime.cli.common import StateOption, exit_on, fail
from runtime.jobs import backup as backups


def backup(
    target: Annotated[Path, Argument(help="New folder for the backup, on another disk.")],
    state: StateOption = Path("state"),
    incremental: Annotated[Path | None, Option(help="Earlier backup: shares equal files.")] = None,
) -> None:
    """Backs up the state folder of a running or stopped system, without secrets.

    Exit status 0: it is intact; 1: the state folder has damage, and so has the backup; 2: there is no backup.
    """
    with exit_on():
        done = backups.back_up(state, target, incremental)
    typer.echo(f"{len(done.files)} files of log {done.log_id}, epoch {done.epoch}, in {target}")
    for damage in done.damage:
        fail(f"{damage.where}: {damage.what}")
    raise typer.Exit(1 if done.damage else 0)


def restore(
    backup: Annotated[Path, Argument(help="Folder of the backup.")],
    state: Annotated[Path, Option(help="New state folder.")],
    erasures: Annotated[Path | None, Option(help="Later state folder: erases its users.")] = None,
) -> None:
    """Restores a backup into a new state folder, if all of it is intact. `recsys up` then continues it."""
    with exit_on():
        erased = backups.restore(backup, state, erasures)
    typer.echo(f"restored into {state}")
    if erasures is not None:
        typer.echo(f"users who were erased after the backup, and are here too: {len(erased)}")
    else:
        fail(
            "users who were erased and keys that were revoked after the backup are back: name a later state "
            "folder with --erasures, or use `recsys forget` and `recsys keys revoke` before `recsys up`"
        )
