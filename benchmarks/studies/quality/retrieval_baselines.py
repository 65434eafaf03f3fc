"""Simple lists that retrieval must beat: popularity, item-kNN and session-kNN.

They learn from engagements with the first label, one by one, and know nothing else. Pure: no clock, no I/O.
"""

from collections import Counter, defaultdict, deque
from heapq import nlargest
from itertools import islice
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
HOUR_MS: Final = 3_600_000
HALF_LIVES_H: Final = (1, 6, 24)
_HISTORY: Final = 50  # newest items of a user, or of a session
PAUSES_H: Final = (0.5, 24)  # a longer pause begins a new session; sparse logs need the longer one
_CANDIDATES: Final = 1000  # newest sessions that share an item
_NEIGHBOURS: Final = 100


class Baseline(Protocol):
    """A recommender that learns from engagements with the first label. Items are catalogue indices."""

    name: str

    def learn(self, user_id: str, item: int, time_ms: int) -> None: ...

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        """Items with a score, each once."""
        ...


class Popularity:
    """Counts that halve every ``half_life_h``."""

    def __init__(self, half_life_h: float) -> None:
        self.name = f"popularity, {half_life_h} h"
        self._half_life_ms = half_life_h * HOUR_MS
        self._counts, self._last_ms = np.zeros(1024), np.zeros(1024)

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        if item >= len(self._counts):
            more = np.zeros(max(item + 1 - len(self._counts), len(self._counts)))
            self._counts = np.concatenate([self._counts, more])
            self._last_ms = np.concatenate([self._last_ms, more])
        age_ms = time_ms - self._last_ms[item]
        self._counts[item] = self._counts[item] * 0.5 ** (age_ms / self._half_life_ms) + 1.0
        self._last_ms[item] = time_ms

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        items = np.flatnonzero(self._counts)
        ages = (now_ms - self._last_ms[items]) / self._half_life_ms
        return items, np.log2(self._counts[items]) - ages  # the logarithm: old counts stay apart


class ItemKnn:
    """Cosine of items over users: users with both, by the root of the product of users with each."""

    name = "item-kNN"

    def __init__(self) -> None:
        self._items: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=_HISTORY))
        self._both: dict[int, Counter[int]] = defaultdict(Counter)
        self._users: Counter[int] = Counter()

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        items = self._items[user_id]
        if item in items:  # again: only its place changes
            items.remove(item)
        else:
            self._users[item] += 1
            for other in items:
                self._both[other][item] += 1
                self._both[item][other] += 1
        items.append(item)

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        total: dict[int, float] = defaultdict(float)
        for item in self._items.get(user_id, ()):
            root = self._users[item] ** 0.5
            for other, both in self._both[item].items():
                total[other] += both / root
        items, sums = _arrays(total)
        return items, sums / np.sqrt([self._users[item] for item in items.tolist()])


class SessionKnn:
    """Sums over the most similar sessions of others (Ludewig and Jannach, 2018, "VS-KNN"): a session is as
    similar as the sum of weights of the shared items, the newest of the own session heaviest."""

    def __init__(self, pause_h: float) -> None:
        self.name = f"session-kNN, pause {pause_h:g} h"
        self._pause_ms = pause_h * HOUR_MS
        self._sessions: list[deque[int]] = []
        self._of_item: dict[int, deque[int]] = defaultdict(lambda: deque(maxlen=_CANDIDATES))
        self._own: dict[str, tuple[int, int]] = {}  # newest session of a user, and its newest time

    def learn(self, user_id: str, item: int, time_ms: int) -> None:
        number, last_ms = self._own.get(user_id, (-1, 0))
        if number < 0 or time_ms - last_ms > self._pause_ms:
            number = len(self._sessions)
            self._sessions.append(deque(maxlen=_HISTORY))
        if item not in self._sessions[number]:
            self._of_item[item].append(number)
        self._sessions[number].append(item)
        self._own[user_id] = number, time_ms

    def scores(self, user_id: str, now_ms: int) -> tuple[Indices, Floats]:
        if user_id not in self._own:
            return np.zeros(0, np.int64), np.zeros(0)
        own, _ = self._own[user_id]
        newest = list(dict.fromkeys(reversed(self._sessions[own])))
        weight = {item: 1 - rank / len(newest) for rank, item in enumerate(newest)}
        sharing = {number for item in newest for number in self._of_item[item]} - {own}
        candidates = islice(sorted(sharing, reverse=True), _CANDIDATES)
        similar = [
            (sum(weight.get(item, 0.0) for item in set(self._sessions[number])), number)
            for number in candidates
        ]
        total: dict[int, float] = defaultdict(float)
        for similarity, number in nlargest(_NEIGHBOURS, similar):
            for item in set(self._sessions[number]):
                total[item] += similarity
        return _arrays(total)


def baselines() -> list[Baseline]:
    """A new one of each."""
    return [
        *(Popularity(hours) for hours in HALF_LIVES_H),
        ItemKnn(),
        *(SessionKnn(hours) for hours in PAUSES_H),
    ]


def _arrays(total: dict[int, float]) -> tuple[Indices, Floats]:
    return np.array(list(total), np.int64), np.array(list(total.values()), np.float64)
