"""``recsys audit features FOLDER``: whether features as served are those that the events of then give.

It reads the archive alone, of a running system, a stopped one, or one of which nothing else is left.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from recsys.config.system_config import Config
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FILE, feature_set
from runtime.supervision import launch_plan as plans
from training.archive.audit import TOLERANCE, AuditReport

audit = typer.Typer(add_completion=False, no_args_is_help=True)


@audit.callback()
def _audit() -> None:
    """Checks what was logged against what the events of then give."""


@audit.command()
def features(
    folder: Annotated[Path, typer.Argument(help="A state folder, or an archive.")],
    share: Annotated[float, typer.Option(help="Of the impressions, hashed.")] = 0.01,
    most: Annotated[int, typer.Option(min=1, help="Impressions at the most, hashed.")] = 2_000,
    tolerance: Annotated[float, typer.Option(help="Of what counters gave.")] = TOLERANCE,
    feature_file: Annotated[
        Path | None,
        typer.Option("--features", help="The feature set, where it isn't in the folder."),
    ] = None,
    json: Annotated[bool, typer.Option(help="As JSON, for programs.")] = False,
) -> None:
    """Computes features of past impressions again. Exit status 0: no skew; 1: skew; 2: nothing could be
    compared."""
    try:
        if not 0 < share <= 1:
            raise ValueError(f"--share is {share}, expected above 0, at most 1")
        report = audited(folder, share, most, tolerance, feature_file)
    except (FileNotFoundError, ValueError) as error:
        typer.secho(f"recsys: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(as_values(report)), indent=2))
    else:
        for line in drawn(report):
            typer.echo(line)
    raise typer.Exit(2 if not report.compared else 1 if report.skewed else 0)


def audited(
    folder: Path, share: float, most: int, tolerance: float = TOLERANCE, file: Path | None = None
) -> AuditReport:
    """The audit of a hashed sample of what is archived in a folder."""
    from serving.reconstruction.reconstructed_replica import Gone
    from serving.reconstruction.reconstructed_session import PastSessions
    from serving.sessions.session_fold import fold_event, shown_keys
    from training.archive.audit import Audit, is_sampled
    from training.archive.raw_events import ArchiveSource
    from training.archive.recompute import (
        CantRecompute,
        PastCounters,
        Folds,
        Recomputer,
        PlacedImpression,
        split_by_counter_offsets,
    )

    archive, config = archive_of(folder), config_of(folder)
    its = features_of(folder, config, file)
    source = ArchiveSource(archive)
    sample = [
        shown for shown in source.impressions() if is_sampled(shown.impression.request_id, share)
    ]
    sample = least_hashed(sample, most)
    source.keep({str(shown.impression.user_id).encode() for shown in sample})
    items, folds = source.items(its), Folds(fold_event, shown_keys)
    sessions = PastSessions(source, config, its)  # type: ignore[arg-type]  # as much of a log as it reads

    def session_of(shown: PlacedImpression) -> Any:
        its = shown.impression
        try:
            if its.stamp is None or its.asked is None:
                return sessions.before(its, shown.offset)
            return sessions.of(its)
        except Gone as error:  # each says whose
            raise CantRecompute("its session can't be folded again as it was") from error

    found = Audit(Recomputer(items), its, tolerance)
    for shown in split_by_counter_offsets(sample).values():
        counters = PastCounters(items, source.events, source.partitions("events"), folds)
        found.look(shown, session_of, counters)
    return found.report


def least_hashed(sample: list[Any], most: int) -> list[Any]:
    """At most so many of a sample, by the hashes of their requests."""
    from recsys.events.hashing import uniform

    if len(sample) <= most:
        return sample
    return sorted(sample, key=lambda shown: uniform(1, shown.impression.request_id))[:most]


def archive_of(folder: Path) -> Path:
    """The archive in a state folder, or the folder itself."""
    return folder / "archive" if (folder / "archive").is_dir() else folder


def config_of(folder: Path) -> Config:
    """How a system was set; the defaults, where only its archive is left."""
    for there in (folder, folder.parent):
        try:
            return replace(plans.read(there)[0], state=str(there.resolve()))
        except FileNotFoundError:
            continue
    there = folder.parent if (folder.parent / FILE).exists() else folder
    return replace(Config(), state=str(there))


def features_of(folder: Path, config: Config, file: Path | None = None) -> FeatureSet:
    """The feature set of a file, or of a folder. Raises ValueError for a file that holds none."""
    if file is None:
        return feature_set(config)
    try:
        return msgspec.json.decode(file.read_bytes(), type=FeatureSet)
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"{file} is no feature set: {error}; a state folder has one, {FILE}"
        ) from error


def as_values(report: AuditReport) -> dict[str, Any]:
    """For programs."""
    differing = {
        name: asdict(its) | {"mean": its.mean} for name, its in sorted(report.differing.items())
    }
    return asdict(report) | {
        "compared": report.compared,
        "skewed": report.skewed,
        "differing": differing,
    }


def drawn(report: AuditReport) -> list[str]:
    """For people."""
    lines = [
        f"{report.sampled} impressions sampled, {report.compared} compared, {report.equal} equal"
    ]
    worst = sorted(report.differing.items(), key=lambda pair: -pair[1].impressions)
    for name, its in worst:
        lines.append(
            f"  {name}: {its.impressions} impressions, {its.numbers} numbers, largest difference "
            f"{its.largest:.6g}, mean {its.mean:.6g}; first in {its.first}"
        )
    for reason, count in report.without_counters.items():
        lines.append(f"  {count} compared but for counters: {reason}")
    for reason, count in sorted(report.not_recomputed.items(), key=lambda pair: -pair[1]):
        lines.append(f"  {count} not computed again: {reason}")
    return lines
