"""The features of past impressions, computed again from raw events as of the time of each.

What a server knew is put together from what it folded: the user's session, the item counters and the fields
of the items, each up to the offset that the impression names; then the one builder of features is called as
it was called then (recsys/features/feature_builder.py). Where an impression names no offsets, what stood on the log
before it counts: its own partition up to it, the others up to its time. Nothing looks ahead.

Pure: events are handed in by offset; how an event changes a session (serving's fold) is handed in, too.
"""

# N items of an impression, P partitions of events

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from recsys.events.dedupe import Recent
from recsys.events.event_types import (
    Engagement,
    Event,
    FeatureBlock,
    Impression,
    Item,
    Tick,
    User,
    repeat_key,
)
from recsys.events.hashing import Id
from recsys.features.catalogue import Catalogue
from recsys.features.counters import Counters
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session

KeysOf = Callable[[Id], Keys]
Placed = tuple[int, Event]  # an event with its offset
Read = tuple[int, Event | None]  # or a record that can't be read
EventsOf = Callable[[int], Iterator[Read]]  # of a partition, from its beginning, in order
_RECENT: Final = 20_000  # events of a partition by whose ids repeats are known, as the folds do


@dataclass(frozen=True)
class Folds:
    """How events change what is known: serving's ``fold_event`` and ``shown_keys``."""

    session: Callable[[Session, Event, KeysOf], None]
    shown: Callable[[FeatureSet, Impression, KeysOf], Keys]


class PlacedImpression(NamedTuple):
    """An impression and its place among the events."""

    partition: int
    offset: int
    impression: Impression


class CantRecompute(ValueError):
    """What is missing; the text is the same for all impressions that lack the same."""


class ItemHistory:
    """All versions of all items, by the offsets of ``items``."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.end = 0
        self._versions: dict[str, list[tuple[int, Item]]] = {}
        self._keys: dict[tuple[str, int], Keys] = {}

    def take(self, offset: int, item: Item) -> None:
        """In order of offsets."""
        self.end = offset + 1
        versions = self._versions.setdefault(str(item.item_id), [])
        if not item.removed or not versions:  # one that is removed keeps its fields
            versions.append((offset, item))

    def catalogue(self, item_ids: Sequence[Id], offset: int | None, time_ms: int) -> Catalogue:
        """These items alone, in order and each once, as they were at an offset, or without one at a time."""
        catalogue = Catalogue(self.features, max(1, len(item_ids)))
        for item_id in item_ids:
            found = [
                item
                for at, item in self._versions.get(str(item_id), ())
                if (at < offset if offset is not None else item.time_ms <= time_ms)
            ]
            if found:
                catalogue.apply(found[-1])
            else:
                catalogue.ensure(item_id)
        return catalogue

    def by_time(self, time_ms: int) -> KeysOf:
        """The keys that items had at a time; of the first fields where all are newer."""

        def keys_of(item_id: Id) -> Keys:
            name = str(item_id)
            versions = self._versions.get(name, ())
            at = max(
                (n for n, (_, its) in enumerate(versions) if its.time_ms <= time_ms), default=0
            )
            keys = self._keys.get((name, at))
            if keys is None:
                fields: dict[str, Any] = versions[at][1].fields if versions else {}
                keys = self._keys[name, at] = self.features.item_keys(item_id, fields)
            return keys

        return keys_of


class _Reader:
    """The events of a partition, each once, read on as far as is asked for."""

    def __init__(self, events: Iterator[Read]) -> None:
        self._events = events
        self._recent = Recent(_RECENT)
        self._next = next(events, None)
        self.offset = 0  # the next
        self.missing = False  # whether an offset that was passed, or may have been, has no record
        self.newest_ms = 0  # of what was taken

    def until(self, offset: int | None, time_ms: int | None = None) -> Iterator[Placed]:
        """What comes before an offset and isn't newer than a time (by the newest so far), each once."""
        while self._next is not None:
            at, event = self._next
            self.missing |= at > self.offset and (offset is None or offset > self.offset)
            newest_ms = max(self.newest_ms, event.time_ms if event is not None else 0)
            if offset is not None and at >= offset or time_ms is not None and newest_ms > time_ms:
                return
            self.offset, self.newest_ms = at + 1, newest_ms
            self._next = next(self._events, None)
            if event is None or isinstance(event, Tick):
                continue
            if self._recent.add(repeat_key(event)):
                yield at, event
        self.missing |= offset is not None and offset > self.offset


class PastCounters:
    """Item counters as they were, going forward through the events of all partitions."""

    def __init__(
        self, items: ItemHistory, events_of: EventsOf, partitions: int, folds: Folds
    ) -> None:
        self._items, self._folds = items, folds
        self._readers = [_Reader(events_of(partition)) for partition in range(partitions)]
        self._fold = ItemCounters(items.features)
        self.nothing = Counters(len(items.features.kinds))

    def of(self, shown: PlacedImpression) -> Counters:
        """What a server had counted when it made an impression. Ask in the order of ``order_of``.

        Raises CantRecompute where events before are missing: erased, or not archived.
        """
        counted = counted_of(shown.impression)
        if counted is not None and not counted:
            return self.nothing
        for partition, reader in enumerate(self._readers):
            own = shown.offset if partition == shown.partition else None
            if counted is not None:
                events = reader.until(counted[partition] if partition < len(counted) else 0)
            else:
                events = reader.until(own, None if own is not None else shown.impression.time_ms)
            for _, event in events:
                self._count(event)
        if any(reader.missing for reader in self._readers):
            raise CantRecompute("events before it are missing: erased, or not archived")
        return self._fold.counters

    def _count(self, event: Event) -> None:
        keys_of = self._items.by_time(event.time_ms)
        if isinstance(event, Impression):
            self._fold.impression(event, self._folds.shown(self._items.features, event, keys_of))
        elif isinstance(event, Engagement):
            self._fold.engagement(event, keys_of(event.item_id))


class PastSessions:
    """Sessions as they were, of some users, going forward. Item keys are those of an event's time."""

    def __init__(
        self,
        items: ItemHistory,
        events_of: EventsOf,
        folds: Folds,
        users: set[str],
        seen: int = 500,
    ) -> None:
        self._items, self._folds, self._users, self._seen = items, folds, users, seen
        self._events_of = events_of
        self._readers: dict[int, _Reader] = {}
        self._waiting: dict[str, deque[Placed]] = {}
        self._sessions: dict[str, Session] = {}

    def of(self, shown: PlacedImpression) -> Session:
        """The session before an impression: up to the offset of its stamp, where it has one."""
        its, features = shown.impression, self._items.features
        stamp, name = its.stamp, str(its.user_id)
        if stamp is not None and its.asked is not None:
            if not stamp.session_offset or "session" in its.degraded:
                return Session(its.user_id, features, self._seen)
            stop = min(stamp.session_offset, shown.offset)
        else:
            stop = shown.offset
        before = self._sessions.get(name)
        if before is not None and before.offset > stop:  # answers of two replicas, in another order
            return self._anew(shown)
        self._read(shown.partition, stop)
        session = self._sessions.setdefault(name, Session(its.user_id, features, self._seen))
        waiting = self._waiting.get(name, deque())
        while waiting and waiting[0][0] < stop:
            offset, event = waiting.popleft()
            if isinstance(event, User) and event.removed:
                session = self._sessions[name] = Session(event.user_id, features, self._seen)
            else:
                self._folds.session(session, event, self._items.by_time(event.time_ms))
            session.offset = offset + 1
        return session

    def _anew(self, shown: PlacedImpression) -> Session:
        users = {str(shown.impression.user_id)}
        past = PastSessions(self._items, self._events_of, self._folds, users, self._seen)
        return past.of(shown)

    def _read(self, partition: int, stop: int) -> None:
        reader = self._readers.get(partition)
        if reader is None:
            reader = self._readers[partition] = _Reader(self._events_of(partition))
        for offset, event in reader.until(stop):
            name = str(getattr(event, "user_id", ""))
            if name in self._users:
                self._waiting.setdefault(name, deque()).append((offset, event))


class Recomputer:
    """Builds the features of impressions from what was known then."""

    def __init__(self, items: ItemHistory) -> None:
        self._items = items
        self.builder = FeatureBuilder(items.features)

    def block(self, shown: PlacedImpression, session: Session, counters: Counters) -> FeatureBlock:
        """The features (N items). Raises CantRecompute where items of then are missing."""
        its = shown.impression
        offset = (
            its.stamp.catalogue_offset if its.stamp is not None and its.asked is not None else None
        )
        if offset is not None and offset > self._items.end:
            raise CantRecompute("items of then aren't archived yet")
        ids = [served.item_id for served in its.items]
        catalogue = self._items.catalogue(ids, offset, its.time_ms)
        indices = np.array([catalogue.index_of(item_id) for item_id in ids], np.int64)
        return self.builder.build(
            session, its.surface, its.context, indices, catalogue, counters, its.time_ms
        ).block()


def counted_of(impression: Impression) -> list[int] | None:
    """Up to which offsets of events a server had counted; None where the impression doesn't say it."""
    stamp, asked = impression.stamp, impression.asked
    if stamp is None or asked is None:
        return None
    if asked.counted:
        return asked.counted
    return [] if not stamp.item_state_offset else None


def order_of(shown: PlacedImpression) -> tuple[int, int]:
    """The order in which ``PastCounters`` can be asked: as the counters grew, then by time. Impressions that
    say what was counted, and such that don't, need one each."""
    counted = counted_of(shown.impression)
    return (0 if counted is None else sum(counted), shown.impression.time_ms)


def split_by_counter_offsets(impressions: Sequence[PlacedImpression]) -> Mapping[bool, list[PlacedImpression]]:
    """Impressions in ``order_of``, apart: those that say what was counted (True), and those that don't."""
    apart: dict[bool, list[PlacedImpression]] = {True: [], False: []}
    for shown in sorted(impressions, key=order_of):
        apart[counted_of(shown.impression) is not None].append(shown)
    return apart
