"""Assembles the parts that take a replica's writes to the log."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from recsys.config.system_config import Config
from recsys.events.event_types import ENGAGEMENT_KINDS, SEEN
from recsys.events.hashing import Id
from recsys.features.catalogue import Catalogue
from recsys.log.protocol import Log
from recsys.process.space_file import SpaceReader
from serving.access.caller_checks import CallerChecks
from serving.ingestion.disk_spool import DiskSpool
from serving.ingestion.event_validation import EventValidator
from serving.ingestion.log_writer import LogWriter
from serving.ingestion.write_api import WithLists, WriteApi
from serving.sessions.session_store import SessionReader
from serving.tracing.freshness import Freshness
from serving.tracing.swipe_traces import SwipeTraces

_KEPT_ON_DISK: Final = 1 << 30  # bytes of impressions that wait while the log is unavailable


def open_write_api(
    config: Config, log: Log, catalogue: Catalogue, sessions: SessionReader, callers: CallerChecks,
    freshness: Freshness, with_lists: WithLists, now_ms: Callable[[], int], traces: SwipeTraces | None,
) -> WriteApi:  # fmt: skip
    """``with_lists``: for an app without lists."""
    schema, is_full = catalogue.features.schema, SpaceReader(config.state).is_full
    spool = DiskSpool(Path(config.state) / "kept", log.id, _KEPT_ON_DISK)
    writer = LogWriter(log, spool=spool, is_full=is_full)
    kinds, has_lists = schema.kinds or ENGAGEMENT_KINDS, schema.shown_by != "click"
    if schema.shown_by == "impression":
        kinds = (*kinds, SEEN)
    validator = EventValidator(
        config, partial(_duration_ms, catalogue), prove=callers.proofs.prove,
        wait_s=callers.quotas.event, kinds=kinds, has_lists=has_lists,
    )  # fmt: skip
    return WriteApi(
        config, writer, sessions, freshness, validator, now_ms, traces, is_full, schema,
        None if has_lists else with_lists,
    )  # fmt: skip


def _duration_ms(catalogue: Catalogue, item_id: Id) -> float | None:
    index = catalogue.index_of(item_id)
    duration = None if index is None else catalogue.fields[index].get("duration_ms")
    if isinstance(duration, int | float) and not isinstance(duration, bool) and duration > 0:
        return float(duration)
    return None
