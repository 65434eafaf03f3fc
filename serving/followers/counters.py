"""Follows ``item_state``: a replica's counters of items, and its co-visits."""

from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from recsys.events.records import ITEM_STATE, ItemState
from recsys.log.protocol import Log, LogLost
from serving.followers.follower import Follower
from serving.followers.items import ItemsFollower
from serving.replica.replica import Replica


@dataclass
class CountersChange:
    """Counters, each with the offset to read next. ``skipped``: some were trimmed before they were read."""

    states: list[tuple[ItemState, int]] = field(default_factory=list)
    skipped: bool = False

    def __bool__(self) -> bool:
        return bool(self.states) or self.skipped


class CountersFollower(Follower[CountersChange]):
    """Applies counters of one feature set."""

    topic: ClassVar = ITEM_STATE
    at_once: ClassVar = 8

    def __init__(self, log: Log, replica: Replica, items: ItemsFollower, set_name: str) -> None:
        """``set_name``: of the feature set, as in the records."""
        super().__init__()
        self._log, self._replica, self._set = log, replica, set_name
        self._items_first: ItemsFollower | None = items
        self.offset = replica.item_state_from = log.begin(ITEM_STATE, 0)
        self._change = CountersChange()

    def read(self, limit: int) -> CountersChange:
        items, change = self._items_first, self._change
        if items is not None and items.offset < self._log.end(items.topic, 0):
            return change  # at first the items, so that counters find theirs
        self._items_first = None
        try:
            records = self._log.read(ITEM_STATE, 0, self.offset, limit)
        except LogLost:  # trimmed: all counters were written again after it
            self.offset, change.skipped = self._log.begin(ITEM_STATE, 0), True
            return change
        for record in records:
            self.offset = record.offset + 1
            state = self.decoded(record.value, _item_state)
            if state is not None and state.features == self._set:
                change.states.append((state, self.offset))
        self._replica.make_room_for_counters(sum(len(state.keys) // 8 for state, _ in change.states))
        return change

    def apply(self, change: CountersChange) -> None:
        if change.skipped:
            self._replica.item_state_from = -1
        for state, offset in change.states:
            self._replica.apply_item_state(state, offset)
        self._change = CountersChange()


_item_state = msgspec.msgpack.Decoder(ItemState)
