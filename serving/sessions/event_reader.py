"""Reads ``items`` and ``events`` for a fold: each event once, with the keys of the items at hand.

Each turn reads items first, so that an event about an item published before it finds the item. Repeats are
recognised by id among the newest events of their partition, also across a restart: the ids before the resume
position are read again.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from recsys.events import event_types
from recsys.events.dedupe import RecentIds
from recsys.events.event_types import Event, Impression, Item, Rejected, dedupe_key
from recsys.events.hashing import Id
from recsys.events.records import EVENTS, ITEMS
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet, Keys
from recsys.log.protocol import Log, read_range, records_of_keys
from recsys.process.worker_share import WHOLE, Share
from serving.sessions.session_fold import shown_keys

REMEMBERED: Final = 20_000  # ids a partition
READ_BACK: Final = 2_000  # records a partition whose ids are read again after a restart
AT_ONCE: Final = 8_000  # records of all partitions, whose sessions a fold holds and writes together


class FoldEvent(NamedTuple):
    """An event with its partition and offset."""

    partition: int
    offset: int
    event: Event


class EventReader:
    """Catalogue and cursor over ``events``. ``offsets``: next to read, by partition; -1 for those of other
    workers."""

    def __init__(self, log: Log, features: FeatureSet, share: Share = WHOLE) -> None:
        self._log, self.features = log, features
        self.partitions = share.partitions(log.partitions(EVENTS))
        self.catalogue = Catalogue(features)
        self.items_offset = log.begin(ITEMS, 0)
        self.offsets: list[int] = []
        self.unreadable = 0
        self.repeats = 0
        self._recent: dict[int, RecentIds] = {}

    def seek(self, offsets: Sequence[int] | None) -> None:
        """Resumes from these offsets; from the beginning of the log if None, or where one is -1."""
        begins = [self._log.begin(EVENTS, p) for p in range(self._log.partitions(EVENTS))]
        if offsets is not None and len(offsets) != len(begins):
            raise ValueError(
                f"a position of {len(offsets)} partitions, but {EVENTS!r} has {len(begins)}: it belongs to "
                "another log; start with a new state folder"
            )
        starts = begins if offsets is None else offsets
        self.offsets = [-1] * len(begins)
        for p in self.partitions:
            self.offsets[p] = starts[p] if starts[p] >= 0 else begins[p]
            self._recent[p] = self._read_back(p, begins[p])

    def read_items(self) -> int:
        """Folds new records of ``items`` into the catalogue; returns their number."""
        moved = 0
        while records := self._log.read(ITEMS, 0, self.items_offset):
            for record in records:
                event = self._decode(record.value)
                if isinstance(event, Item):
                    self.catalogue.apply(event)
            self.items_offset = records[-1].offset + 1
            moved += len(records)
        return moved

    def read(self, limit: int = 1_000) -> list[FoldEvent]:
        """Next events to fold, at most ``limit`` a partition and AT_ONCE in all, without repeats; advances
        ``offsets``."""
        self.read_items()
        limit = min(limit, AT_ONCE // max(1, len(self.partitions))) or 1
        events = []
        for partition in self.partitions:
            records = self._log.read(EVENTS, partition, self.offsets[partition], limit)
            for record in records:
                event = self._decode(record.value)
                if event is None or not event_types.is_folded(event):
                    continue
                if self._recent[partition].add(dedupe_key(event)):
                    events.append(FoldEvent(partition, record.offset, event))
                else:
                    self.repeats += 1
            if records:
                self.offsets[partition] = records[-1].offset + 1
        return events

    def of_users(
        self, user_ids: Iterable[Id], partition: int, before: int
    ) -> dict[str, list[tuple[int, Event]]]:
        """The events of users before an offset that the log has, by user, each once with its offset, in
        order: one search of the partition for all of them."""
        keys = {str(user_id).encode() for user_id in user_ids}
        events: dict[str, list[tuple[int, Event]]] = {key.decode(): [] for key in keys}
        recent = {key: RecentIds(REMEMBERED) for key in keys}
        for record in records_of_keys(self._log, EVENTS, partition, keys, before):
            event = self._decode(record.value)
            if event is None or not event_types.is_folded(event):
                continue
            if recent[record.key].add(dedupe_key(event)):
                events[record.key.decode()].append((record.offset, event))
        return events

    def keys_of(self, item_id: Id) -> Keys:
        """Keys of an item (I,); of its id alone if it was never published."""
        index = self.catalogue.index_of(item_id)
        if index is None:
            return self.features.item_keys(item_id, {})
        keys: Keys = self.catalogue.keys[index]
        return keys

    def shown_keys(self, impression: Impression) -> Keys:
        """Keys of the items that an impression counts as shown (N, I)."""
        return shown_keys(self.features, impression, self.keys_of)

    def _decode(self, value: bytes) -> Event | None:
        try:
            return event_types.decode(value)
        except Rejected:
            # The joiner reads the same records and puts this one into dead_letters.
            self.unreadable += 1
            return None

    def _read_back(self, partition: int, begin: int) -> RecentIds:
        recent, stop = RecentIds(REMEMBERED), self.offsets[partition]
        start = max(begin, stop - READ_BACK)
        for record in read_range(self._log, EVENTS, partition, start, stop, 500):
            event = self._decode(record.value)
            if event is not None and event_types.is_folded(event):
                recent.add(dedupe_key(event))
        return recent
