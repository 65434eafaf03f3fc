"""Events from outside become records of the log: checked one by one, repeats dropped, long views derived.

Pure: what is taken is told to ``keep`` once it is committed, so that an event whose append failed isn't taken
for a repeat when its client sends it again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from recsys.config.system_config import Config
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import (
    MAX_EVENT_BYTES,
    Engagement,
    Event,
    Rejected,
    dedupe_key,
    encode,
    event_id_of,
    parse,
)
from recsys.events.hashing import Id, partition_of
from recsys.log.protocol import Append

ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"
REJECTED: Final = "rejected"
LOST: Final = "lost"  # of a write-back: the log was away when its time came
LONG_SHARE: Final = 0.6  # of the item's duration ...
LONG_MS: Final = 18_000  # ... or so long, whichever is less
_LONG: Final = ":long_view"
_HOUR_MS: Final = 3_600_000
_SHOWN: Final = 200  # characters of a refused value


@dataclass(frozen=True)
class Result:
    """What became of one event: ``error`` is (field, value, expected) where it was rejected."""

    index: int
    status: str
    error: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class ValidatedBatch:
    """One batch: what to append to ``events``, in order, and a result per event."""

    records: tuple[Append, ...]
    engagements: tuple[Engagement, ...]  # of the records, in order
    results: tuple[Result, ...]
    ids: tuple[str, ...] = field(repr=False, default=())

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)


class EventValidator:
    """Takes batches of decoded JSON events. ``duration_ms_of`` knows an item's duration, or None."""

    def __init__(
        self,
        config: Config,
        duration_ms_of: Callable[[Id], float | None] = lambda item_id: None,
        window: int = 200_000,
    ) -> None:
        self._partitions = config.log.partitions
        self._retention_ms = config.log.retention_hours * _HOUR_MS
        self._duration_ms_of = duration_ms_of
        self._recent = RecentIds(window)

    def take(self, raw_events: Sequence[object], now_ms: int, foreign: bool = False) -> ValidatedBatch:
        """Reads the events of one batch; never raises for what is in them. ``foreign``: from the client of
        another recommender, who may tell the past, and needn't know which request it is about."""
        results: list[Result] = []
        read: list[Engagement] = []
        ids: dict[str, None] = {}
        for index, raw in enumerate(raw_events):
            try:
                event = self._parse(raw, now_ms, foreign)
            except Rejected as error:
                told = (error.field, error.value[:_SHOWN], error.expected)
                results.append(Result(index, REJECTED, told))
                continue
            names = _names(event)
            if any(name in ids or name in self._recent for name in names):
                results.append(Result(index, DUPLICATE))
                continue
            ids.update(dict.fromkeys(names))
            read.append(event)
            results.append(Result(index, ACCEPTED))
        out = self._with_long_views(read, ids)
        records = tuple(
            Append(
                partition_of(event.user_id, self._partitions),
                str(event.user_id).encode(),
                encode(event),
            )
            for event in out
        )
        return ValidatedBatch(records, tuple(out), tuple(results), tuple(ids))

    def keep(self, taken: ValidatedBatch) -> None:
        """The batch is committed: its events are repeats from now on."""
        for name in taken.ids:
            self._recent.add(name)

    def _parse(self, raw: object, now_ms: int, foreign: bool) -> Engagement:
        kind = raw.get("type") if isinstance(raw, dict) else None
        if isinstance(raw, dict) and kind != "engagement":
            raise Rejected("type", kind, _expected(kind))
        oldest_ms = None if foreign else now_ms - self._retention_ms
        event = parse(raw, now_ms=now_ms, oldest_ms=oldest_ms, unattributed=foreign)
        assert isinstance(event, Engagement)
        check_storable(event, raw)
        return event

    def _with_long_views(self, read: list[Engagement], ids: dict[str, None]) -> list[Engagement]:
        """Puts a long_view before each view that was one, unless the client said it itself."""
        out: list[Engagement] = []
        for event in read:
            if event.kind == "view" and self._is_long(event):
                name = _long_name(event)
                if name not in ids and name not in self._recent:
                    ids[name] = None
                    long_id = event_id_of(event) + _LONG
                    out.append(msgspec.structs.replace(event, kind="long_view", event_id=long_id))
            out.append(event)
        return out

    def _is_long(self, view: Engagement) -> bool:
        if view.watch_ms is None:
            return False
        duration_ms = self._duration_ms_of(view.item_id)
        enough_ms = LONG_MS if not duration_ms else min(LONG_SHARE * duration_ms, LONG_MS)
        return view.watch_ms >= enough_ms


def check_storable(event: Event, raw: object) -> None:
    """Raises Rejected for an event that is too large, or that MessagePack can't hold."""
    try:
        size = len(msgspec.json.encode(raw))
        encode(event)
    except (OverflowError, UnicodeEncodeError) as error:
        raise Rejected(
            "event", raw, f"integers of 64 bits and text in Unicode ({error})"
        ) from error
    if size > MAX_EVENT_BYTES:
        raise Rejected("event", f"{size} bytes", f"at most {MAX_EVENT_BYTES} bytes")


def _names(event: Engagement) -> list[str]:
    """What an event is known by: its id, and a long view also by what it is about."""
    names = [dedupe_key(event)]
    return [*names, _long_name(event)] if event.kind == "long_view" else names


def _long_name(event: Engagement) -> str:
    if not event.request_id:  # of another time, perhaps: only the view itself says which
        return dedupe_key(event) + _LONG
    return f"{event.request_id}\x1f{event.item_id}\x1f{event.user_id}{_LONG}"


def _expected(kind: Any) -> str:
    if kind == "impression":
        return "'engagement': impressions are written by the server when it recommends"
    if kind in ("item", "user"):
        return f"'engagement': send a change of an {kind} to /v1/{kind}s, with the admin key"
    return "'engagement'"
