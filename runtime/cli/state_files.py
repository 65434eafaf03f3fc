"""``recsys check``, ``backup`` and ``restore``: files of a state folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from runtime.cli.common import JsonOption, StateOption, exit_on, fail, show
from runtime.jobs import backup as backups
from runtime.jobs.state_check import StateReport, check_state
from runtime.supervision.run_file import AlreadyRuns


def check(
    target: Annotated[Path, Argument(help="State folder.")] = Path("state"),
    repair: Annotated[
        bool, Option("--repair", help="Repair damage from other copies; on a stopped system.")
    ] = False,
    mb_s: Annotated[float, Option(min=0, help="Maximum MB read per second; 0: no limit.")] = 50.0,
    json: JsonOption = None,
) -> None:
    """Compares all files of a state folder with their checksums.

    Exit status 0: no damage, or all of it was repaired; 1: damage is left or something was lost; 2: it can't
    be checked.
    """
    with exit_on(), exit_on(AlreadyRuns):
        if not target.is_dir():
            raise ValueError(
                f"{target} is no state folder; `recsys contracts {target}` checks a package of plug-ins"
            )
        report = check_state(target, repair, mb_s)
    show(report, json, _lines)
    raise typer.Exit(0 if report.is_intact else 1)


def _lines(report: StateReport) -> Iterator[str]:
    yield (
        f"{report.records:,} log records, {report.snapshots} snapshots, {report.write_ahead_files} "
        f"write-ahead files, {report.part_states} part states, {report.archive_files} archive files"
    )
    for damage in report.damage:
        yield f"{'repaired' if damage.repaired else 'DAMAGED'}  {damage.where}: {damage.what}"
        yield f"          repair: {damage.repair}"
    yield "no damage" if not report.damage else f"{len(report.damage)} damaged"


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
