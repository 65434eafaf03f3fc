"""Recomputes the features of past impressions from raw events, as of the time of each.

The user's session, the item counters and the item fields are rebuilt up to the offsets that the impression
states. For an impression without offsets, the events before it on the log count: of its own partition those
before it, of the others those up to its time. Pure: events are handed in by offset.
"""

# N items of an impression, P partitions of events

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from plugins.feature_audit.audit_source import DecodedRecord, PlacedImpression
from recsys.config.safety_config import BoundsConfig
from recsys.config.system_config import CovisitConfig
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import (
    Engagement,
    Event,
    FeatureBlock,
    Impression,
    Item,
    User,
    Verdict,
    Withdrawal,
    dedupe_key,
    is_folded,
)
from recsys.events.hashing import Id
from recsys.features.catalogue import Catalogue
from recsys.features.counters import CounterTable
from recsys.features.covisits import Covisits
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.item_counters import ItemCounters
from recsys.features.session import Session
from serving.sessions.session_fold import KeysOf, shown_keys

PlacedEvent = tuple[int, Event]  # an event with its offset
EventsOf = Callable[[int], Iterator[DecodedRecord]]  # of a partition, from its beginning, in order
_RECENT: Final = 20_000  # events of a partition whose ids are remembered to detect repeats


class CantRecompute(ValueError):
    """States which input is missing, with the same text for all impressions that lack it."""


class ItemHistory:
    """All versions of all items, by their offsets in ``items``."""

    def __init__(self, features: FeatureSet) -> None:
        self.features = features
        self.end = 0
        self._versions: dict[str, list[tuple[int, Item]]] = {}
        self._keys: dict[tuple[str, int], Keys] = {}

    def take(self, offset: int, item: Item) -> None:
        """Adds a version; call it in order of offsets."""
        self.end = offset + 1
        versions = self._versions.setdefault(str(item.item_id), [])
        if not item.removed or not versions:  # a removed item keeps its fields
            versions.append((offset, item))

    def catalogue(self, item_ids: Sequence[Id], offset: int | None, time_ms: int) -> Catalogue:
        """A catalogue of some items, each once and in order, as of an offset, or of a time without one."""
        catalogue = Catalogue(self.features, max(1, len(item_ids)))
        for item_id in item_ids:
            versions = [
                item
                for at, item in self._versions.get(str(item_id), ())
                if (at < offset if offset is not None else item.time_ms <= time_ms)
            ]
            for version in (*versions[:1], *versions[1:][-1:]):  # the first one tells the age
                catalogue.apply(version)
            catalogue.ensure(item_id)
        return catalogue

    def by_time(self, time_ms: int) -> KeysOf:
        """Function for the keys of items at a time; an item with only newer versions has its first fields."""

        def keys_of(item_id: Id) -> Keys:
            name = str(item_id)
            versions = self._versions.get(name, ())
            past = (n for n, (_, item) in enumerate(versions) if item.time_ms <= time_ms)
            at = max(past, default=0)
            keys = self._keys.get((name, at))
            if keys is None:
                fields: dict[str, Any] = versions[at][1].fields if versions else {}
                keys = self._keys[name, at] = self.features.item_keys(item_id, fields)
            return keys

        return keys_of


class EventReader:
    """Reads the events of a partition forward, each once."""

    def __init__(self, events: Iterator[DecodedRecord]) -> None:
        self._events = events
        self._recent = RecentIds(_RECENT)
        self._next = next(events, None)
        self.offset = 0  # the next
        self.missing = False  # whether an offset that was or may have been passed has no record
        self.newest_ms = 0  # of the events read

    def until(self, offset: int | None, time_ms: int | None = None) -> Iterator[PlacedEvent]:
        """Yields the events before an offset and up to a time (by the newest so far), each once."""
        while self._next is not None:
            at, event = self._next
            self.missing |= at > self.offset and (offset is None or offset > self.offset)
            newest_ms = max(self.newest_ms, event.time_ms if event is not None else 0)
            if (offset is not None and at >= offset) or (time_ms is not None and newest_ms > time_ms):
                return
            self.offset, self.newest_ms = at + 1, newest_ms
            self._next = next(self._events, None)
            if event is None or not is_folded(event):
                continue
            if self._recent.add(dedupe_key(event)):
                yield at, event
        self.missing |= offset is not None and offset > self.offset


class CountersAsOf:
    """Rebuilds past item counters and co-visits, going forward through the events of all partitions.

    The co-visits are those of the server but for the order of events of several partitions: it decides
    about their last bits, and which neighbours an item with more than its limit has.
    """

    def __init__(
        self,
        items: ItemHistory,
        events_of: EventsOf,
        partitions: int,
        bounds: BoundsConfig | None = None,
        covisits: CovisitConfig | None = None,
    ) -> None:
        self._items, self._events_of = items, events_of
        self._readers = [EventReader(events_of(partition)) for partition in range(partitions)]
        covisits = covisits or CovisitConfig()
        self._fold = ItemCounters(items.features, bounds, partitions, covisits)
        self.covisits, self.nothing = Covisits(covisits), items.features.counter_table()

    def of(self, shown: PlacedImpression) -> CounterTable:
        """The server's counters when it made an impression; ``covisits`` are of the same time. Call it in the
        order of ``order_of``. Raises CantRecompute if earlier events are missing: erased, or not archived."""
        counted = counted_of(shown.impression)
        if counted is not None and not counted:
            return self.nothing
        for partition, reader in enumerate(self._readers):
            own = shown.offset if partition == shown.partition else None
            if counted is not None:
                events = reader.until(counted[partition] if partition < len(counted) else 0)
            else:
                events = reader.until(own, None if own is not None else shown.impression.time_ms)
            for offset, event in events:
                self._count(partition, offset, event)
        visits = self._fold.visits.take()
        self.covisits.add_within_limit(visits[np.argsort(visits[:, 0], kind="stable")])
        if any(reader.missing for reader in self._readers):
            raise CantRecompute("events before it are missing: erased, or not archived")
        return self._fold.counters

    def _count(self, partition: int, offset: int, event: Event) -> None:
        keys_of = self._items.by_time(event.time_ms)
        if isinstance(event, Impression):
            shown = shown_keys(self._items.features, event, keys_of)
            self._fold.impression(event, shown, partition)
        elif isinstance(event, Engagement):
            self._fold.engagement(event, keys_of(event.item_id), partition)
        elif isinstance(event, User):
            self._fold.user(event, partition)
        elif isinstance(event, Verdict | Withdrawal):
            user, reader = str(event.user_id), EventReader(self._events_of(partition))
            before = (e for _, e in reader.until(offset) if str(getattr(e, "user_id", "")) == user)
            if isinstance(event, Verdict):
                self._fold.verdict(event, before, keys_of, partition)
            else:
                self._fold.withdraw(event, before, keys_of, partition)


class Recomputer:
    """Builds the features of impressions from rebuilt state."""

    def __init__(self, items: ItemHistory) -> None:
        self._items = items
        self.builder = FeatureBuilder(items.features)

    def block(
        self,
        shown: PlacedImpression,
        session: Session,
        counters: CounterTable,
        covisits: Covisits | None = None,
    ) -> FeatureBlock:
        """The features (N items). Raises CantRecompute if the item versions of that time are missing."""
        impression, stamp = shown.impression, shown.impression.stamp
        inputs = impression.inputs
        if inputs is not None and inputs.plain:
            session = session.without_profile()
        is_stamped = stamp is not None and inputs is not None
        offset = stamp.catalogue_offset if stamp is not None and is_stamped else None
        if offset is not None and offset > self._items.end:
            raise CantRecompute("items of then aren't archived yet")
        ids, time_ms = [served.item_id for served in impression.items], impression.time_ms
        catalogue = self._items.catalogue(ids, offset, time_ms)
        indices = np.array([catalogue.index_of(item_id) for item_id in ids], np.int64)
        features = self.builder.build(
            session, impression.surface, impression.context, indices, catalogue, counters, time_ms,
            is_list=True, covisits=covisits,
        )  # fmt: skip
        return self.builder.as_shown(features).block()


def counted_of(impression: Impression) -> list[int] | None:
    """The offsets up to which the server had counted events; None if the impression doesn't state them."""
    stamp, inputs = impression.stamp, impression.inputs
    if stamp is None or inputs is None:
        return None
    if inputs.counted:
        return inputs.counted
    return [] if not stamp.item_state_offset else None


def order_of(shown: PlacedImpression) -> tuple[int, int]:
    """Sort key for ``CountersAsOf``: as the counters grew, then by time."""
    counted = counted_of(shown.impression)
    return (0 if counted is None else sum(counted), shown.impression.time_ms)


def split_by_counter_offsets(
    impressions: Sequence[PlacedImpression],
) -> Mapping[bool, list[PlacedImpression]]:
    """Splits impressions, in ``order_of``, into those with counter offsets (True) and those without,
    which need a ``CountersAsOf`` each."""
    parts: dict[bool, list[PlacedImpression]] = {True: [], False: []}
    for shown in sorted(impressions, key=order_of):
        parts[counted_of(shown.impression) is not None].append(shown)
    return parts
