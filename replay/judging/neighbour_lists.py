"""Simple lists of neighbours: items with the same users, and sessions with the same items."""

from array import array
from collections import defaultdict
from typing import Final

import numpy as np

from replay.judging.bounded_state import ByItem, Floats, Indices, NewestItems, PairCounts
from replay.judging.simple_lists import HOUR_MS

_HISTORY: Final = 50  # newest items of a user, or of a session
_SESSIONS: Final = 100_000  # newest sessions
_CANDIDATES: Final = 1000  # newest sessions that share an item
_NEIGHBOURS: Final = 100


class ItemKnn:
    """Cosine of items over users: users with both, by the root of the product of users with each. State: the
    newest 50 items of users (``NewestItems``), two million pairs (``PairCounts``)."""

    name = "item-kNN"

    def __init__(self) -> None:
        self._items = NewestItems(_HISTORY)
        self._both, self._users = PairCounts(), ByItem()

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        others = list(self._items.of(user_id))
        if self._items.add(user_id, item):
            self._users[item] += 1
            for other in others:
                self._both.add(other, item)
                self._both.add(item, other)

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        own = self._items.of(user_id)
        rows = [self._both.of(item) for item in own]
        if not sum(len(others) for others, _ in rows):
            return np.zeros(0, np.int64), np.zeros(0)
        weights = [both / self._users[item] ** 0.5 for item, (_, both) in zip(own, rows, strict=True)]
        sums = np.bincount(np.concatenate([others for others, _ in rows]), np.concatenate(weights))
        items = np.flatnonzero(sums)
        return items, sums[items] / np.sqrt(self._users.values[items])


class SessionKnn:
    """Sums over the most similar sessions of others (Ludewig and Jannach, 2018, "VS-KNN"): a session is as
    similar as the sum of weights of the shared items, the newest of the own session heaviest. A pause of more
    than ``pause_h`` ends a session. State: the newest 50 items of the newest 100,000 sessions."""

    def __init__(self, pause_h: float, sessions: int = _SESSIONS) -> None:
        self.name = f"session-kNN, pause {pause_h:g} h"
        self._pause_ms, self._limit, self._count = pause_h * HOUR_MS, sessions, 0
        self._rows = np.full((min(1024, sessions), _HISTORY), -1, np.int64)  # of number % limit
        self._owners: list[str] = []
        self._of_item: dict[int, array[int]] = defaultdict(lambda: array("q"))  # numbers, by item
        self._own: dict[str, tuple[int, int]] = {}  # newest session of a user, and its newest time

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        number, last_ms = self._own.get(user_id, (-1, 0))
        if number < 0 or time_ms - last_ms > self._pause_ms:
            number = self._begin(user_id)
        items = self._items_of(number)
        if item in items:
            items.remove(item)
        else:
            self._of_item[item].append(number)
            if len(self._of_item[item]) > 2 * _CANDIDATES:
                del self._of_item[item][:_CANDIDATES]
        items.append(item)
        if len(items) > _HISTORY:
            self._drop(items.pop(0), number)
        self._rows[number % self._limit, : len(items)] = items
        self._own[user_id] = number, time_ms

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        if user_id not in self._own:
            return np.zeros(0, np.int64), np.zeros(0)
        own, _ = self._own[user_id]
        newest = self._items_of(own)[::-1]
        sharing = np.unique(np.concatenate([np.array(self._of_item[item]) for item in newest]))
        sharing = sharing[(sharing != own) & (sharing >= self._count - self._limit)]
        rows = self._rows[sharing[-_CANDIDATES:] % self._limit]
        weights = np.zeros(max(int(rows.max(initial=0)), *newest) + 2)  # the last is of no item: -1
        weights[newest] = 1 - np.arange(len(newest)) / len(newest)
        similar = weights[rows].sum(1)
        nearest = np.argsort(similar, kind="stable")[: -_NEIGHBOURS - 1 : -1]  # of equal the newest
        rows, similar = rows[nearest].ravel(), np.repeat(similar[nearest], _HISTORY)
        sums = np.bincount(rows + 1, similar, 1)[1:].astype(np.float64)
        items, first = np.unique(rows, return_index=True)
        items = items[np.argsort(first)]  # of equal sums the item of the nearest session first
        items = items[items >= 0]
        items = items[sums[items] > 0]
        return items, sums[items]

    def _begin(self, user_id: str) -> int:
        number, place = self._count, self._count % self._limit
        self._count += 1
        if number < self._limit:
            self._owners.append(user_id)
            if number == len(self._rows):
                more = min(len(self._rows), self._limit - number)
                self._rows = np.concatenate([self._rows, np.full((more, _HISTORY), -1, np.int64)])
            return number
        ended, owner = number - self._limit, self._owners[place]
        for item in self._items_of(ended):
            self._drop(item, ended)
        if self._own[owner][0] == ended:
            del self._own[owner]
        self._rows[place], self._owners[place] = -1, user_id
        return number

    def _items_of(self, number: int) -> list[int]:
        """Items of a session, oldest first."""
        row = self._rows[number % self._limit]
        items: list[int] = row[row >= 0].tolist()
        return items

    def _drop(self, item: int, number: int) -> None:
        numbers = self._of_item[item]
        if number in numbers:
            numbers.remove(number)
        if not numbers:
            del self._of_item[item]
