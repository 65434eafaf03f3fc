"""``recsys audit`` and ``backfill``: features of archived impressions, recomputed from raw events."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from runtime.cli.common import JsonOption, exit_on, show
from training.archive.audit import TOLERANCE, AuditReport

FolderArgument = Annotated[Path, Argument(help="A state folder or an archive.")]

audit = typer.Typer(add_completion=False, no_args_is_help=True)


@audit.callback()
def _audit() -> None:
    """Compares logged data with data recomputed from the events."""


@audit.command()
def features(
    folder: FolderArgument,
    share: Annotated[float, Option(help="Fraction of impressions to sample, hashed.")] = 0.01,
    most: Annotated[int, Option(min=1, help="Maximum number of impressions.")] = 2_000,
    tolerance: Annotated[float, Option(help="Tolerance of counter features.")] = TOLERANCE,
    feature_file: Annotated[
        Path | None, Option("--features", help="Feature set file; by default the folder's.")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Recomputes features of past impressions and compares them with the logged ones.

    Exit status 0: no skew; 1: skew; 2: nothing could be compared.
    """
    from runtime.jobs.archive_jobs import audit_features

    with exit_on(FileNotFoundError, ValueError):
        if not 0 < share <= 1:
            raise ValueError(f"--share is {share}, expected above 0, at most 1")
        report = audit_features(folder, share, most, tolerance, feature_file)
    show(_values(report), json, lambda _: _lines(report))
    raise typer.Exit(2 if not report.compared else 1 if report.skewed else 0)


def _values(report: AuditReport) -> dict[str, Any]:
    named = sorted(report.differing.items())
    differing = {name: asdict(one) | {"mean": one.mean} for name, one in named}
    derived = {"compared": report.compared, "skewed": report.skewed, "differing": differing}
    return asdict(report) | derived


def _lines(report: AuditReport) -> list[str]:
    counts = f"{report.compared} compared, {report.equal} equal"
    lines = [f"{report.sampled} impressions sampled, {counts}"]
    worst_first = sorted(report.differing.items(), key=lambda pair: -pair[1].impressions)
    for name, difference in worst_first:
        lines.append(
            f"  {name}: {difference.impressions} impressions, {difference.numbers} numbers, largest "
            f"difference {difference.largest:.6g}, mean {difference.mean:.6g}; first in {difference.first}"
        )
    for reason, count in report.without_counters.items():
        lines.append(f"  {count} compared without counters: {reason}")
    for reason, count in sorted(report.not_recomputed.items(), key=lambda pair: -pair[1]):
        lines.append(f"  {count} not recomputed: {reason}")
    return lines


def backfill(
    folder: FolderArgument,
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
    from runtime.jobs.archive_jobs import backfill as run

    with exit_on(FileNotFoundError, ValueError):
        if out.exists():
            raise ValueError(f"--out is {out}, which exists already: name a new folder")
        counts = run(folder, out, feature_file, from_, until)
    show(counts, json, lambda counts: [f"{count:>10} {why}" for why, count in counts.items()])
    raise typer.Exit(0 if any(list(counts.values())[:2]) else 2)
