"""Feature audit of an archive: recomputes features from the raw events of the time.

It reads the archive alone, of a running or a stopped system, or of one of which nothing else is left.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from plugins.answer_explanation.reconstructed_replica import NotReconstructible
from plugins.answer_explanation.reconstructed_session import ReconstructedSessions
from plugins.feature_audit import recompute
from plugins.feature_audit.audit import TOLERANCE, Audit, AuditReport, is_sampled
from plugins.feature_audit.audit_source import AuditSource, PlacedImpression
from plugins.feature_audit.recompute import CountersAsOf, ItemHistory, Recomputer
from recsys.app.logged_sets import taken_up
from recsys.config.system_config import Config
from recsys.events.event_types import Event, Item
from recsys.events.hashing import uniform
from recsys.events.records import ITEMS
from recsys.features.feature_set import FeatureSet
from recsys.features.feature_set_file import FILE, feature_set
from recsys.process.log_consumer import decoded
from runtime.supervision import launch_plan


def audit_features(
    folder: Path, share: float, limit: int, tolerance: float = TOLERANCE, file: Path | None = None
) -> AuditReport:
    """Compares logged with recomputed features, for a hashed sample of the archived impressions that
    have some, each in the feature set that it was logged with. ``file``: of the only feature set; the rest
    can't be recomputed."""
    archive, config = archive_of(folder), config_of(folder)
    sets = [features_of(folder, config, file)] if file else _logged_sets(config)
    source = AuditSource(archive)
    report, sample = AuditReport(), list[PlacedImpression]()
    for placed in source.impressions():
        if placed.impression.features is None:
            report.without_features += 1
        elif is_sampled(placed.impression.request_id, share):
            sample.append(placed)
    if len(sample) > limit:
        sample = sorted(sample, key=lambda placed: uniform(1, placed.impression.request_id))[:limit]
    source.keep({str(placed.impression.user_id).encode() for placed in sample})
    by_set: dict[str, list[PlacedImpression]] = {features.digest: [] for features in sets}
    for placed in sample:
        block = placed.impression.features
        assert block is not None  # the sample has only impressions with features
        by_set.get(block.feature_set, by_set[sets[0].digest]).append(placed)
    for features in sets:
        _audit_set(features, by_set[features.digest], source, config, tolerance, report)
    return report


def items_of(source: AuditSource, features: FeatureSet) -> ItemHistory:
    """All versions of all items in an archive."""
    history = ItemHistory(features)
    for record, event in decoded(source.records(ITEMS, 0), Event):
        if isinstance(event, Item):
            history.take(record.offset, event)
    history.end = max(history.end, source.end(ITEMS, 0))
    return history


def _logged_sets(config: Config) -> list[FeatureSet]:
    """The feature set of the state folder's file, and those that its log names; without a log the first."""
    first = feature_set(config)
    with launch_plan.open_log_if_any(config.state) as log:
        return list(({first.digest: first} | (taken_up(log) if log else {})).values())


def _audit_set(
    features: FeatureSet,
    impressions: list[PlacedImpression],
    source: AuditSource,
    config: Config,
    tolerance: float,
    report: AuditReport,
) -> None:
    items = items_of(source, features)
    sessions = ReconstructedSessions(source, config, features)  # type: ignore[arg-type]  # it reads like a log

    def session_of(placed: PlacedImpression) -> Any:
        impression = placed.impression
        try:
            if impression.stamp is None or impression.inputs is None:
                return sessions.before(impression, placed.offset)
            return sessions.of(impression)
        except NotReconstructible as error:  # its message names the user, the report must not
            raise recompute.CantRecompute("its session can't be folded again as it was") from error

    audit = Audit(Recomputer(items), features, tolerance, report)
    for placed in recompute.split_by_counter_offsets(impressions).values():
        counters = CountersAsOf(
            items, source.events, source.partitions("events"), config.bounds, config.covisits
        )
        audit.look(placed, session_of, counters)


def archive_of(folder: Path) -> Path:
    """The archive in a state folder, or the folder itself."""
    return folder / "archive" if (folder / "archive").is_dir() else folder


def config_of(folder: Path) -> Config:
    """The system's configuration; the defaults, where only its archive is left."""
    for state in (folder, folder.parent):
        try:
            return replace(launch_plan.read(state)[0], state=str(state.resolve()))
        except FileNotFoundError:
            continue
    state = folder.parent if (folder.parent / FILE).exists() else folder
    return replace(Config(), state=str(state))


def features_of(folder: Path, config: Config, file: Path | None = None) -> FeatureSet:
    """The feature set of a file, or of a folder. Raises ValueError for an invalid file."""
    if file is None:
        return feature_set(config)
    try:
        return msgspec.json.decode(file.read_bytes(), type=FeatureSet)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{file} is no feature set: {error}; a state folder has one, {FILE}") from error
