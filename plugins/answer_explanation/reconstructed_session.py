"""Reconstructs a user's session at an offset; finds the impression of a request, and the known policies.

The part that folds sessions reads the catalogue meanwhile, and no record says how far it had read at each
event. This matters only for items whose fields changed, or that were published after an event: their versions
of the event's time, of some moments before or after it, the newest, and those of items that weren't published
yet are tried; the digest in the impression decides.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from experiments.assignment.policy import Policies
from experiments.statistics.revision import running
from plugins.answer_explanation.reconstructed_answer import fold_events
from plugins.answer_explanation.reconstructed_replica import NotReconstructible, items
from recsys.config.system_config import Config
from recsys.events import event_types
from recsys.events.control_records import Control, Experiments
from recsys.events.event_types import Engagement, Event, Impression, Item, Rejected
from recsys.events.hashing import Id, digest_of, partition_of
from recsys.events.records import CONTROL, EVENTS, ITEMS
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.session import Session
from recsys.log.compression import plain
from recsys.log.protocol import Log, Record, newest_first
from recsys.process.log_consumer import UNREADABLE, readable
from serving.request import SESSION
from serving.sessions.session_fold import KeysOf

_READ: Final = 1_000
# Delays from an event's time to its fold: clocks differ, and the fold may be behind.
_SHIFTS_MS: Final = (0, -1, 100, 1_000, -100, -1_000, 5_000, -5_000, 60_000, -60_000)
# (partition, key, before): archived records, in order
Older = Callable[[int, bytes, int], Iterable[Record]]


class ItemVersion(NamedTuple):
    """An item's fields from an offset of ``items`` on, as keys (I,)."""

    offset: int
    time_ms: int
    keys: Keys


class ItemVersions:
    """All versions of the items of a log. Items that never changed cost no more than a catalogue."""

    def __init__(self, log: Log, features: FeatureSet) -> None:
        self._log, self._features = log, features
        self._catalogue = Catalogue(features)
        self._first: list[tuple[int, int]] = []  # offset and time, by index in the catalogue
        self._changed: dict[str, list[ItemVersion]] = {}
        self._offset = log.begin(ITEMS, 0)

    def read(self) -> None:
        """Reads on to the end of the log."""
        end = self._log.end(ITEMS, 0)
        for item, offset in items(self._log, self._offset, end):
            self._apply(item, offset)
        self._offset = end

    def _apply(self, item: Item, offset: int) -> None:
        index, name = self._catalogue.index_of(item.item_id), str(item.item_id)
        before = None if index is None else self._catalogue.keys[index].copy()
        index = self._catalogue.apply(item)
        keys = self._catalogue.keys[index]
        if before is None:
            self._first.append((offset, item.time_ms))
        elif (before != keys).any():
            first = ItemVersion(*self._first[index], before)
            versions = self._changed.setdefault(name, [first])
            versions.append(ItemVersion(offset, item.time_ms, keys.copy()))

    def changed(self, item_ids: Iterable[Id]) -> list[str]:
        """The items that have had several versions."""
        return sorted({str(item_id) for item_id in item_ids} & self._changed.keys())

    def by_time(self, time_ms: int, ahead: bool = True) -> KeysOf:
        """Keys as published by a time; where all are newer the first if ``ahead``, else those of the id."""
        return lambda item_id: self._keys(item_id, lambda v: v.time_ms <= time_ms, ahead)

    def before(self, offset: int) -> KeysOf:
        """Keys at an offset of ``items``."""
        return lambda item_id: self._keys(item_id, lambda version: version.offset < offset)

    def _keys(self, item_id: Id, holds: Callable[[ItemVersion], bool], ahead: bool = True) -> Keys:
        index, versions = self._catalogue.index_of(item_id), self._changed.get(str(item_id), [])
        if index is not None and not versions:
            versions = [ItemVersion(*self._first[index], self._catalogue.keys[index])]
        held = [version for version in versions if holds(version)] or versions[: int(ahead)]
        return held[-1].keys if held else self._features.item_keys(item_id, {})


class ReconstructedSessions:
    """Reconstructs sessions. ``older`` gives archived records that the log no longer has."""

    def __init__(
        self, log: Log, config: Config, features: FeatureSet, older: Older = lambda partition, key, before: ()
    ) -> None:
        self._log, self._config, self._features, self._older = log, config, features, older
        self._items = ItemVersions(log, features)

    def of(self, impression: Impression) -> Session:
        """The session of an answer. Raises NotReconstructible."""
        stamp, inputs, seen = impression.stamp, impression.inputs, self._config.sessions.seen
        assert stamp is not None and inputs is not None
        if SESSION in impression.degraded or not stamp.session_offset:
            return Session(impression.user_id, self._features, seen)
        events = self._events_of(impression.user_id, stamp.session_offset)
        self._items.read()
        for keys_at in self._item_keys(events, stamp.catalogue_offset):
            session = Session(_user_of(events[0][1]), self._features, seen)
            session = fold_events(session, events, keys_at)
            for blob in (session.pack(), session.lasting()):  # the latter where it had expired
                if not inputs.session or digest_of(blob) == inputs.session:
                    return Session.unpack(blob, self._features, seen)
        raise NotReconstructible(self._why(impression.user_id, stamp.session_offset, events))

    def before(self, impression: Impression, offset: int) -> Session:
        """The session of all events before an offset, for an impression that names no state."""
        events = self._events_of(impression.user_id, offset)
        self._items.read()
        session = Session(impression.user_id, self._features, self._config.sessions.seen)
        return fold_events(session, events, self._items.by_time)

    def _item_keys(
        self, events: Sequence[tuple[int, Event]], offset: int
    ) -> Iterator[Callable[[int], KeysOf]]:
        """Keys that items may have had at each event, the likeliest first."""
        several = bool(self._changed_items(events))
        for shift_ms in _SHIFTS_MS if several else _SHIFTS_MS[:1] if events else ():
            yield lambda time_ms, by_ms=shift_ms: self._items.by_time(time_ms + by_ms)  # type: ignore[misc]
        if several:
            yield lambda _: self._items.before(offset)
        if events:
            yield lambda time_ms: self._items.by_time(time_ms, ahead=False)

    def _changed_items(self, events: Sequence[tuple[int, Event]]) -> list[str]:
        item_ids = [event.item_id for _, event in events if isinstance(event, Engagement)]
        if self._features.schema.shown_by == "impression":
            lists = (event.items for _, event in events if isinstance(event, Impression))
            item_ids += [item.item_id for items in lists for item in items]
        return self._items.changed(item_ids)

    def _events_of(self, user_id: Id, stop: int) -> list[tuple[int, Event]]:
        """The user's events before an offset, each once."""
        partition, key = self._place(user_id)
        begin = self._log.begin(EVENTS, partition)
        user_records = list(self._older(partition, key, min(begin, stop)))
        for offset in self._log.keyed(EVENTS, partition, [key], stop):
            user_records += self._log.read(EVENTS, partition, offset, 1)
        events: dict[str, tuple[int, Event]] = {}
        for record in user_records:
            try:
                event = event_types.decode(record.value)
            except Rejected:
                continue
            if getattr(event, "user_id", None) is not None and event_types.is_folded(event):
                events.setdefault(event_types.dedupe_key(event), (record.offset, event))
        return list(events.values())

    def _place(self, user_id: Id) -> tuple[int, bytes]:
        return partition_of(user_id, self._log.partitions(EVENTS)), str(user_id).encode()

    def _why(self, user_id: Id, stop: int, events: Sequence[tuple[int, Event]]) -> str:
        partition, _ = self._place(user_id)
        begin = self._log.begin(EVENTS, partition)
        changed = self._changed_items(events)
        why = (
            f"{EVENTS}/{partition} begins at offset {begin}, and older events of the user may be missing"
            if begin
            else "a repeated event may have been counted then and not now, or the other way round"
        )
        if changed:
            why += f"; and the fields of items in it were changed: {', '.join(changed[:5])}"
        return f"the session of {user_id} at offset {stop} can't be reconstructed: {why}"


def _user_of(event: Event) -> Id:
    user_id: Id = event.user_id  # type: ignore[union-attr]
    return user_id


def find_impression(
    log: Log, request_id: str, user_id: Id | None = None
) -> tuple[int, int, Impression] | None:
    """Partition, offset and impression of a request, searched from the newest records on; in all partitions
    where the user isn't given."""
    count = log.partitions(EVENTS)
    partitions = range(count) if user_id is None else [partition_of(user_id, count)]
    for partition in partitions:
        for record in newest_first(log, EVENTS, partition, first=_READ):
            impression = impression_of(record.value, request_id)
            if impression is not None:
                return partition, record.offset, impression
    return None


def impression_of(value: bytes, request_id: str) -> Impression | None:
    """The record's impression, if it is that of the request."""
    try:
        value = plain(value)
        if request_id.encode() not in value:  # decoding takes far longer
            return None
        event = event_types.decode(value)
    except UNREADABLE:
        return None
    return event if isinstance(event, Impression) and event.request_id == request_id else None


def known_policies(log: Log, config: Config, labels: Sequence[str]) -> Iterator[Policies]:
    """Policies of every revision of the experiments on the log, the newest first, and at last without any.
    Their base is the current configuration."""
    for record in reversed(list(readable(log, CONTROL, Control))):
        if isinstance(record, Experiments):
            with suppress(ValueError):  # a replica ignores it, too
                experiments = running(record, config.policy, labels)
                yield Policies(config.policy, experiments, config.surfaces)
    yield Policies(config.policy, (), config.surfaces)
