"""Reads ``items`` and ``events`` for a fold: every event once, with the items' keys at hand.

Items are read first in each turn, so that an event about an item that was published before it finds it.
Repeats are recognised by their ids among the newest of their partition, also across a restart: the ids before
the place that is gone on from are read back.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from recsys.events.dedupe import Recent
from recsys.events.event_types import Event, Impression, Item, Rejected, Tick, decode, repeat_key
from recsys.events.hashing import Id
from recsys.events.records import EVENTS, ITEMS
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet, Keys
from recsys.log.protocol import Log
from serving.sessions.session_fold import shown_keys

REMEMBERED: Final = 20_000  # ids a partition
READ_BACK: Final = 2_000  # records a partition whose ids are read again after a restart


class Read(NamedTuple):
    """An event with where it stands."""

    partition: int
    offset: int
    event: Event


class EventReader:
    """The catalogue, and the events after ``offsets``. ``offsets`` are the next to read, by partition."""

    def __init__(self, log: Log, features: FeatureSet) -> None:
        self._log, self.features = log, features
        self.catalogue = Catalogue(features)
        self.items_offset = log.begin(ITEMS, 0)
        self.offsets: list[int] = []
        self.unreadable = 0
        self.repeats = 0
        self._recent: list[Recent] = []

    def seek(self, offsets: Sequence[int] | None) -> None:
        """Goes on from these offsets; from the beginning of the log without."""
        partitions = range(self._log.partitions(EVENTS))
        begins = [self._log.begin(EVENTS, p) for p in partitions]
        if offsets is not None and len(offsets) != len(begins):
            raise ValueError(
                f"a place of {len(offsets)} partitions, but {EVENTS!r} has {len(begins)}: it was left by "
                "another log; start with a new state folder"
            )
        self.offsets = list(begins if offsets is None else offsets)
        self._recent = [self._read_back(p, begins[p]) for p in partitions]

    def read_items(self) -> int:
        """Folds what is new in ``items``; returns how many records that were."""
        moved = 0
        while records := self._log.read(ITEMS, 0, self.items_offset):
            for record in records:
                event = self._decode(record.value)
                if isinstance(event, Item):
                    self.catalogue.apply(event)
            self.items_offset = records[-1].offset + 1
            moved += len(records)
        return moved

    def read(self, limit: int = 1_000) -> list[Read]:
        """The next events, at most ``limit`` a partition, without ticks and repeats; ``offsets`` move on."""
        self.read_items()
        found = []
        for partition, offset in enumerate(self.offsets):
            records = self._log.read(EVENTS, partition, offset, limit)
            for record in records:
                event = self._decode(record.value)
                if event is None or isinstance(event, Tick):
                    continue
                if self._recent[partition].add(repeat_key(event)):
                    found.append(Read(partition, record.offset, event))
                else:
                    self.repeats += 1
            if records:
                self.offsets[partition] = records[-1].offset + 1
        return found

    def keys_of(self, item_id: Id) -> Keys:
        """The keys of an item (I,); of its id alone where it was never published."""
        index = self.catalogue.index_of(item_id)
        if index is None:
            return self.features.item_keys(item_id, {})
        keys: Keys = self.catalogue.keys[index]
        return keys

    def shown_keys(self, impression: Impression) -> Keys:
        """The keys of what an impression says was shown (N, I): see ``serving.sessions.session_fold``."""
        return shown_keys(self.features, impression, self.keys_of)

    def _decode(self, value: bytes) -> Event | None:
        try:
            return decode(value)
        except Rejected:
            # The joiner, which reads the same records, keeps it in dead_letters.
            self.unreadable += 1
            return None

    def _read_back(self, partition: int, begin: int) -> Recent:
        recent, stop = Recent(REMEMBERED), self.offsets[partition]
        offset = max(begin, stop - READ_BACK)
        while offset < stop:
            records = self._log.read(EVENTS, partition, offset, min(500, stop - offset))
            if not records:
                break
            for record in records:
                event = self._decode(record.value) if record.offset < stop else None
                if event is not None and not isinstance(event, Tick):
                    recent.add(repeat_key(event))
            offset = records[-1].offset + 1
        return recent
