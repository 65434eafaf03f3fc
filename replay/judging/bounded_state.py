"""Containers with a limit: the newest items of users, counts of pairs of items, values by item."""

from array import array
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
ITEMS_OF_USERS: Final = 1_000_000  # of all users together
PAIRS: Final = 2_000_000  # about 100 bytes each


class NewestItems:
    """Newest distinct items of each user, oldest first, at most ``each``. Beyond ``limit`` items of all users
    together, the users who were inactive longest are forgotten."""

    def __init__(self, each: int, limit: int = ITEMS_OF_USERS) -> None:
        self._each, self._limit = each, limit
        self._lists: OrderedDict[str, list[int]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, user_id: str, item: int) -> bool:
        """Makes the item the user's newest; whether it wasn't there."""
        items = self._lists.setdefault(user_id, [])
        self._lists.move_to_end(user_id)
        is_new = item not in items
        if not is_new:
            items.remove(item)
        elif len(items) == self._each:
            items.pop(0)
        else:
            self._size += 1
        items.append(item)
        while self._size > self._limit:
            self._size -= len(self._lists.popitem(last=False)[1])
        return is_new

    def of(self, user_id: str) -> list[int]:
        return self._lists.get(user_id, [])

    def lists(self) -> list[list[int]]:
        """Items of each user, the most recently active user last."""
        return list(self._lists.values())


class PairCounts:
    """Counts of ordered pairs of items. Beyond ``limit`` pairs the least counted half is dropped (as in lossy
    counting: Manku and Motwani, 2002)."""

    def __init__(self, limit: int = PAIRS) -> None:
        self._limit, self._pairs = limit, 0
        # By first item: the place of each second one, the second ones, and their counts.
        self._rows: dict[int, tuple[dict[int, int], array[int], array[int]]] = {}

    def __len__(self) -> int:
        return self._pairs

    def add(self, first: int, second: int) -> None:
        row = self._rows.get(first)
        if row is None:
            row = self._rows[first] = {}, array("q"), array("q")
        places, items, counts = row
        place = places.get(second)
        if place is not None:
            counts[place] += 1
            return
        places[second] = len(items)
        items.append(second)
        counts.append(1)
        self._pairs += 1
        if self._pairs > self._limit:
            self._drop_half()

    def of(self, first: int) -> tuple[Indices, Indices]:
        """Second items and their counts, copied."""
        row = self._rows.get(first)
        if row is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.array(row[1], np.int64), np.array(row[2], np.int64)

    def _drop_half(self) -> None:
        counts = np.concatenate([np.array(row[2], np.int64) for row in self._rows.values()])
        least = int(np.sort(counts)[len(counts) // 2])  # this count goes, too: ties have no order
        old, self._rows, self._pairs = self._rows, {}, 0
        for first, (_, items, counted) in old.items():
            pairs = [(i, n) for i, n in zip(items, counted, strict=True) if n > least]
            if pairs:
                seconds = array("q", [item for item, _ in pairs])
                places = {item: place for place, item in enumerate(seconds)}
                self._rows[first] = places, seconds, array("q", [n for _, n in pairs])
                self._pairs += len(pairs)


class ByItem:
    """A number for each item, ``empty`` at first. 8 bytes for each index up to the highest."""

    def __init__(self, empty: float = 0.0) -> None:
        self._empty = empty
        self.values = np.full(1024, empty)

    def __getitem__(self, item: int) -> float:
        return float(self.values[item]) if item < len(self.values) else self._empty

    def __setitem__(self, item: int, value: float) -> None:
        if item >= len(self.values):
            more = max(item + 1 - len(self.values), len(self.values))
            self.values = np.concatenate([self.values, np.full(more, self._empty)])
        self.values[item] = value
