"""Validates events from clients and turns them into log records: drops repeats, derives long views.

Pure: a batch is passed to ``remember`` once it is committed, so that an event whose append failed isn't taken
for a repeat when its client sends it again.
"""

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from recsys.config.system_config import Config
from recsys.events import event_types
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import Engagement, Event, Rejected
from recsys.events.hashing import Id
from recsys.events.records import record_of
from recsys.log.protocol import Append
from serving.access.caller import SERVER, Caller
from serving.access.proofs import REPEATED, proof_of

ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"
REJECTED: Final = "rejected"
RETRY: Final = "retry"  # over the quota of its user
LOST: Final = "lost"  # a write-back whose log was away when it was due
LONG_SHARE: Final = 0.6  # a view of this share of the item's duration is a long view ...
LONG_MS: Final = 18_000  # ... or of this time, whichever is less
_LONG: Final = ":long_view"
_HOUR_MS: Final = 3_600_000
Prove = Callable[[Engagement, Caller, int], tuple[Engagement, str]]
_SHOWN: Final = 200  # characters of a rejected value


class FieldError(msgspec.Struct, frozen=True):
    """A field that is wrong, as the API encodes it."""

    field: str
    value: str
    expected: str

    @classmethod
    def of(cls, error: Rejected) -> "FieldError":
        return cls(error.field, error.value, error.expected)


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """Outcome of one event, as the API encodes it. ``warning``: of an accepted one, what may be a mistake."""

    index: int
    status: str
    error: FieldError | None = None
    warning: FieldError | None = None


@dataclass(frozen=True)
class ValidatedBatch:
    """Records to append to ``events``, in order, and a result per event. ``wait_s``: until events over a
    quota may come again."""

    records: tuple[Append, ...]
    engagements: tuple[Engagement, ...]  # of the records, in order
    results: tuple[Result, ...]
    ids: tuple[str, ...] = field(repr=False, default=())
    # Accepted events that don't count, by fault.
    unproven: Counter[str] = field(default_factory=Counter)
    wait_s: float = 0.0

    def count(self, status: str) -> int:
        return sum(result.status == status for result in self.results)


class EventValidator:
    """Validates batches of decoded JSON events. ``duration_ms``: duration of an item, if known. ``prove``:
    as Proofs.prove. ``wait_s``: as Quotas.event; repeats don't count. ``kinds``: of engagement.
    ``has_lists``: whether the app has lists, whose id every engagement names."""

    def __init__(
        self, config: Config, duration_ms: Callable[[Id], float | None] = lambda item_id: None,
        window: int = 200_000, prove: Prove = lambda event, caller, now_ms: (event, ""),
        wait_s: Callable[[Caller, Id, float], float] = lambda caller, user_id, now_s: 0.0,
        kinds: Sequence[str] = event_types.ENGAGEMENT_KINDS, has_lists: bool = True,
    ) -> None:  # fmt: skip
        self._prove, self._wait_s, self._kinds = prove, wait_s, kinds
        self._has_lists = has_lists
        self._partitions = config.log.partitions
        self._retention_ms = config.log.retention_hours * _HOUR_MS
        self._duration_ms = duration_ms
        self._recent = RecentIds(window)

    def validate(
        self, raw_events: Sequence[object], now_ms: int, foreign: bool = False,
        caller: Caller = SERVER, in_flight: Container[str] = (),
    ) -> ValidatedBatch:  # fmt: skip
        """Validates the events of one batch; never raises for their content. ``foreign``: from a client of
        Gorse or Metarank, which may send old events and needn't name the request. ``in_flight``: ids that
        are being committed; a batch with one is validated again, so from it on no quota is used."""
        results: list[Result] = []
        accepted: list[Engagement] = []
        ids: dict[str, None] = {}
        unproven, over_s, is_final = Counter[str](), 0.0, True
        for index, raw in enumerate(raw_events):
            try:
                event, fault = self._prove(self._parse(raw, now_ms, foreign), caller, now_ms)
            except Rejected as error:
                reason = FieldError(error.field, error.value[:_SHOWN], error.expected)
                results.append(Result(index, REJECTED, reason))
                continue
            names = _names(event)
            if not (fault or caller.attributes or self._any_known(names, ids)):
                if self._any_known([use := _use_of(event)], ids):
                    fault = "" if event.kind == "view" else REPEATED
                    proof = proof_of(caller, fault) if fault else event_types.AGAIN
                    event = event_types.with_proof(event, proof, event.source)
                    names = _names(event)
                else:
                    names.append(use)
            if self._any_known(names, ids):
                results.append(Result(index, DUPLICATE))
                continue
            is_final = is_final and not any(name in in_flight for name in names)
            if is_final and (wait_s := self._wait_s(caller, event.user_id, now_ms / 1000)):
                over_s += wait_s
                results.append(Result(index, RETRY))
                continue
            if fault:
                unproven[fault] += 1
            ids.update(dict.fromkeys(names))
            accepted.append(event)
            results.append(Result(index, ACCEPTED))
        engagements = self._with_long_views(accepted, ids)
        records = tuple(record_of(event, self._partitions) for event in engagements)
        taken = records, tuple(engagements), tuple(results), tuple(ids)
        return ValidatedBatch(*taken, unproven, over_s)

    def _any_known(self, names: Sequence[str], ids: Container[str]) -> bool:
        return any(name in ids or name in self._recent for name in names)

    def remember(self, batch: ValidatedBatch) -> None:
        """Notes a committed batch: its events are repeats from now on."""
        for name in batch.ids:
            self._recent.add(name)

    def _parse(self, raw: object, now_ms: int, foreign: bool) -> Engagement:
        kind = raw.get("type") if isinstance(raw, dict) else None
        if isinstance(raw, dict) and kind != "engagement":
            raise Rejected("type", kind, _expected(kind))
        oldest_ms = None if foreign else now_ms - self._retention_ms
        unattributed = foreign or not self._has_lists
        if isinstance(raw, dict) and not self._has_lists:
            raw = {"request_id": ""} | raw
        event = event_types.parse(
            raw, now_ms=now_ms, oldest_ms=oldest_ms, unattributed=unattributed, kinds=self._kinds
        )
        assert isinstance(event, Engagement)
        check_storable(event, raw)
        return event

    def _with_long_views(self, accepted: list[Engagement], ids: dict[str, None]) -> list[Engagement]:
        """Inserts a long_view before each long view, unless the client sent it itself."""
        engagements: list[Engagement] = []
        for event in accepted:
            if event.kind == "view" and self._is_long(event):
                # A view that wasn't long, and a further one that is: the item was watched.
                proof = msgspec.UNSET if event.proof == event_types.AGAIN else event.proof
                view = event_types.with_proof(event, proof, event.source)
                name = _long_name(view)
                if name not in ids and name not in self._recent:
                    ids[name] = None
                    long_id = event_types.event_id_of(event) + _LONG
                    long = msgspec.structs.replace(view, kind="long_view", event_id=long_id)
                    engagements.append(long)
            engagements.append(event)
        return engagements

    def _is_long(self, view: Engagement) -> bool:
        if view.watch_ms is None:
            return False
        duration_ms = self._duration_ms(view.item_id)
        long_ms = LONG_MS if not duration_ms else min(LONG_SHARE * duration_ms, LONG_MS)
        return view.watch_ms >= long_ms


def check_storable(event: Event, raw: object) -> None:
    """Raises Rejected for an event that is too large or that MessagePack can't store."""
    try:
        size = len(msgspec.json.encode(raw))
        event_types.encode(event)
    except (OverflowError, UnicodeEncodeError) as error:
        raise Rejected("event", raw, f"integers of 64 bits and text in Unicode ({error})") from error
    if size > event_types.MAX_EVENT_BYTES:
        raise Rejected("event", f"{size} bytes", f"at most {event_types.MAX_EVENT_BYTES} bytes")


def _names(event: Engagement) -> list[str]:
    """Dedupe keys of an event: its id, and for a long view also its subject. An event that proves nothing
    must not stand in the way of one that does, so its keys are others."""
    names = [_proven(event) + event_types.dedupe_key(event)]
    return [*names, _long_name(event)] if event.kind == "long_view" else names


def _proven(event: Engagement) -> str:
    return "" if event.attributed else f"{event.proof}\x1f\x1f"


def _long_name(event: Engagement) -> str:
    if not event.request_id:  # perhaps of another time: only the view itself identifies it
        return _proven(event) + event_types.dedupe_key(event) + _LONG
    return _proven(event) + _subject(event) + _LONG


def _use_of(event: Engagement) -> str:
    """Dedupe key of a use of an impression token: it proves one engagement of each kind with an item."""
    return f"{_subject(event)}\x1f{event.kind}"


def _subject(event: Engagement) -> str:
    return f"{event.request_id}\x1f{event.item_id}\x1f{event.user_id}"


def _expected(kind: Any) -> str:
    if kind == "impression":
        return "'engagement': impressions are written by the server when it recommends"
    if kind in ("item", "user", "preference"):
        return f"'engagement': send {kind}s to /v1/{kind}s"
    return "'engagement'"
