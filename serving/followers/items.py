"""Follows ``items``: the catalogue of a replica."""

from typing import ClassVar

from recsys.events.event_types import Item, Rejected, decode
from recsys.events.records import ITEMS
from recsys.log.protocol import Log
from serving.followers.follower import Follower
from serving.replica.item_vectors import ItemVectors

Items = list[tuple[Item, int]]  # each with the offset to read next


class ItemsFollower(Follower[Items]):
    """Applies published, changed and removed items. ``applied``: every record of ``items`` before this offset
    is in the catalogue."""

    topic: ClassVar = ITEMS
    at_once: ClassVar = 50

    def __init__(self, log: Log, replica: ItemVectors) -> None:
        super().__init__()
        self._log, self._replica = log, replica
        self.offset = self.applied = log.begin(ITEMS, 0)
        self._change: Items = []

    def read(self, limit: int) -> Items:
        for record in self._log.read(ITEMS, 0, self.offset, limit):
            self.offset = record.offset + 1
            try:
                event = decode(record.value)
            except Rejected:
                self.unreadable += 1
                continue
            if isinstance(event, Item):
                self._change.append((event, self.offset))
        if not self._change:  # the last ones are applied, and unreadable ones are skipped
            self.applied = self.offset
        self._replica.make_room_for_items(len(self._change))
        return self._change

    def apply(self, change: Items) -> None:
        if change:
            self._replica.apply_records(change)
            self.applied = change[-1][1]
        self._change = []

    def skip_to(self, offset: int) -> None:
        """Goes on from a snapshot of the catalogue, with all items before ``offset``. Items that were read
        before an error may be older."""
        self.offset = self.applied = max(self.offset, offset)
        self._change = [item for item in self._change if item[1] > offset]
