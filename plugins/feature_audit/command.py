"""``recsys audit``: features of archived impressions, recomputed from raw events."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from plugins.feature_audit.audit import TOLERANCE, AuditReport
from runtime.cli.common import JsonOption, exit_on, show

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
    from plugins.feature_audit.archive_audit import audit_features

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
    if count := report.without_features:
        lines.append(f"  {count} without features, as imported ones, not sampled: see recsys backfill")
    for reason, count in report.without_counters.items():
        lines.append(f"  {count} compared without counters: {reason}")
    for reason, count in sorted(report.not_recomputed.items(), key=lambda pair: -pair[1]):
        lines.append(f"  {count} not recomputed: {reason}")
    return lines
