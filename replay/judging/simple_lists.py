"""Simple lists that a recommender must beat, and the simplest: popularity, transitions, and the viewer's own.

They learn from engagements with the first label, one by one in the order of time, and know nothing else.
"""

from typing import Final, Protocol

import numpy as np

from recsys.events.hashing import key_of
from replay.judging.bounded_state import ByItem, Floats, Indices, NewestItems, PairCounts

HOUR_MS: Final = 3_600_000
_TRANSITIONS: Final = 1_000_000
_OWN: Final = 200  # newest items of a viewer


class SimpleList(Protocol):
    """A recommender that learns from engagements with the first label. Items are indices from 0."""

    name: str

    def learn(self, user_id: str, item: int, time_ms: int) -> None: ...

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        """Items with a score, each once; seen ones too."""
        ...


class Popularity:
    """Counts that halve every ``half_life_h``. State: 8 bytes for each index of an item.

    An item's level is the logarithm of its count plus the time in half-lives, so that only learning
    changes it.
    """

    def __init__(self, half_life_h: float) -> None:
        days, hours = divmod(half_life_h, 24)
        self.name = f"popularity, {f'{days:g} d' if days > 1 and not hours else f'{half_life_h:g} h'}"
        self._half_life_ms = half_life_h * HOUR_MS
        self._levels = ByItem(-np.inf)

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        now = time_ms / self._half_life_ms
        self._levels[item] = float(np.logaddexp2(self._levels[item], now))

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        items = np.flatnonzero(self._levels.values > -np.inf)
        return items, self._levels.values[items] - now_ms / self._half_life_ms


class Transitions:
    """How often an item was the next of its user after the user's newest one: a Markov chain of first order.
    State: a million pairs, and the newest item of a million users."""

    name = "transitions"

    def __init__(self) -> None:
        self._newest = NewestItems(1)
        self._counts = PairCounts(_TRANSITIONS)

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        for before in self._newest.of(user_id):
            self._counts.add(before, item)
        self._newest.add(user_id, item)

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        for newest in self._newest.of(user_id):
            items, counts = self._counts.of(newest)
            return items, counts.astype(np.float64)
        return np.zeros(0, np.int64), np.zeros(0)


class OwnItems:
    """The viewer's own items, those with the most engagements first; of equal ones the newest. State: the
    newest 200 items of users (``NewestItems``), and two million counts (``PairCounts``)."""

    name = "own items"

    def __init__(self) -> None:
        self._items, self._counts = NewestItems(_OWN), PairCounts()

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        self._items.add(user_id, item)
        self._counts.add(key_of("user", user_id), item)

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        own = np.array(self._items.of(user_id)[::-1], np.int64)
        items, counts = self._counts.of(key_of("user", user_id))
        times = dict(zip(items.tolist(), counts.tolist(), strict=True))
        return own, np.array([times.get(item, 0) for item in own.tolist()], np.float64)
