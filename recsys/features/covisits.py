"""Co-visits: items that the same viewers engage with soon after each other, for a source of candidates.

A visit is an engagement with the first label. It counts for its item and adds one to each pair of it and the
viewer's items before it, both ways. Items near a history are those with the largest sum of P(item | entry)
over its entries (session-based neighbours, Ludewig and Jannach 2018), times the square root of the item's
recent share of its visits: what rises comes first. Counts decay by event time. Memory is bounded: an item
keeps ``NEIGHBOURS`` others, of which a newcomer replaces the least; whole rows go by their last visit.

Legend: R rows (items), N neighbours, V visits, T history, C columns of a visit.
"""

from collections import OrderedDict
from collections.abc import Iterable
from struct import Struct
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.id_map import Arrays, IdMap
from recsys.arrays.key_index import place_of
from recsys.config.system_config import CovisitConfig
from recsys.events.hashing import Id, key_of
from recsys.events.records import CovisitRows
from recsys.features.session import Entry

NEIGHBOURS: Final = 256
PREVIOUS: Final = 10  # items of a viewer before a visit that it makes pairs with
COLUMNS: Final = 3 + PREVIOUS  # of a visit: time, 1 or -1 (taken back), item, items before it or 0
_HOUR_MS: Final = 3_600_000.0
_FRACTION: Final = 32  # at a limit, 1 / 32 of the rows go at once
NEWER: Final = 0.9  # weight of a history entry relative to the next newer one
_EARLIER: Final = 0.1  # weight of entries of earlier visits, where visits are declared
_PRIOR: Final = 3.0  # visits that smooth a share
_TREND: Final = 0.05  # recent visits that each item has
_ITEMS: Final = Struct(f"{PREVIOUS}q")
_NONE: Final = bytes(_ITEMS.size)

Keys = NDArray[np.int64]
Doubles = NDArray[np.float64]
_int, _float, _double = types.int64, types.float32, types.float64
# Arguments of kernels: index, others, weights, visits, last_ms; history, its weights, now_ms, half-lives.
_ROWS: Final = (*(read_only(_int, 2),) * 2, *(read_only(_float, 2),) * 2, read_only(_int, 1))
_HISTORY: Final = (read_only(_int, 1), read_only(_double, 1), _int, read_only(_double, 1))
_CHAINS: Final = 4096  # by the low bits of a key


@kernel(types.void(_int[:, ::1], _float[:, ::1], _float[:, ::1], _int, _int, _float, _double[::1]))
def _pair(others: Any, weights: Any, visits: Any, row: Any, other: Any, sign: Any, ages: Any) -> None:
    """Adds a pair to one row; ``ages`` in half-lives, negative for a late visit. Other 0: only decays."""
    if ages[0] > 0:
        decay = np.float32(np.exp2(-ages[0]))
        weights[row] *= decay
        visits[row, 0] *= decay
        visits[row, 1] *= np.float32(np.exp2(-ages[1]))
    if other == 0:
        return
    amount, least = sign * np.float32(np.exp2(min(ages[0], 0.0))), 0
    for n in range(others.shape[1]):
        if others[row, n] == other and weights[row, n] > 0:
            weights[row, n] = max(weights[row, n] + amount, np.float32(0))
            return
        if weights[row, n] < weights[row, least]:
            least = n
    if amount > 0:
        others[row, least], weights[row, least] = other, amount


@kernel(types.void(_int[:, ::1], _float[:, ::1], _float[:, ::1], _int[::1], read_only(_int, 2),
                   read_only(_int, 2), read_only(_double, 1)))  # fmt: skip
def _add(
    others: Any, weights: Any, visits: Any, last_ms: Any, visits_VC: Any, rows: Any, half_lives: Any
) -> None:
    """Adds visits in order. ``rows``: of the item and of those before it, -1 for none."""
    for v in range(visits_VC.shape[0]):
        now_ms, sign = visits_VC[v, 0], np.float32(visits_VC[v, 1])
        for p in range(rows.shape[1]):
            row = rows[v, p]
            if row < 0:
                continue
            ages = (now_ms - last_ms[row]) / half_lives
            item = visits_VC[v, 2] if p else 0
            _pair(others, weights, visits, row, item, sign, ages)
            last_ms[row] = max(last_ms[row], now_ms)
            if p:
                ages = (now_ms - last_ms[rows[v, 0]]) / half_lives
                _pair(others, weights, visits, rows[v, 0], visits_VC[v, 2 + p], sign, ages)
            else:
                for speed in range(2):
                    amount = sign * np.float32(np.exp2(min(ages[speed], 0.0)))
                    visits[row, speed] = max(visits[row, speed] + amount, np.float32(0))


@kernel(_double(read_only(_float, 2), read_only(_int, 1), _int, _int, read_only(_double, 1)))
def _rising(visits: Any, last_ms: Any, row: Any, now_ms: Any, half_lives: Any) -> Any:
    """What a row's score is multiplied by: the root of the recent share of its visits."""
    left = np.exp2(-max(now_ms - last_ms[row], 0) / half_lives)
    return np.sqrt((visits[row, 1] * left[1] + _TREND) / (visits[row, 0] * left[0] + _PRIOR))


@kernel(_int(*_ROWS, *_HISTORY, _double[::1], _int[::1]))
def _near(index: Any, others: Any, weights: Any, visits: Any, last_ms: Any, history: Any,
          weights_T: Any, now_ms: Any, half_lives: Any, scores: Any, rows: Any) -> Any:  # fmt: skip
    """Adds up scores by row (zeros before); returns the number of rows with one, which it writes."""
    count = 0
    for t in range(history.shape[0]):
        row = place_of(index, history[t])
        if row < 0 or weights_T[t] <= 0:
            continue
        each = weights_T[t] / (visits[row, 0] + _PRIOR)
        for n in range(others.shape[1]):
            if weights[row, n] <= 0:
                continue
            other = place_of(index, others[row, n])
            if other >= 0:
                if scores[other] == 0:
                    rows[count] = other
                    count += 1
                scores[other] += each * weights[row, n]
    for i in range(count):
        scores[rows[i]] *= _rising(visits, last_ms, rows[i], now_ms, half_lives)
    return count


@kernel(types.void(*_ROWS, *_HISTORY, read_only(_int, 1), _double[::1]))
def _near_each(index: Any, others: Any, weights: Any, visits: Any, last_ms: Any, history: Any,
               weights_T: Any, now_ms: Any, half_lives: Any, keys: Any, scores: Any) -> None:  # fmt: skip
    """The scores of ``_near`` of some keys alone (zeros before), which takes half of the time."""
    heads, after = np.full(_CHAINS, -1, np.int16), np.empty(keys.shape[0], np.int64)
    for n in range(keys.shape[0]):
        chain = keys[n] & (_CHAINS - 1)
        after[n], heads[chain] = heads[chain], n
    for t in range(history.shape[0]):
        row = place_of(index, history[t])
        if row < 0 or weights_T[t] <= 0:
            continue
        each = weights_T[t] / (visits[row, 0] + _PRIOR)
        for m in range(others.shape[1]):
            if weights[row, m] <= 0:
                continue
            n = int(heads[others[row, m] & (_CHAINS - 1)])
            while n >= 0:
                if keys[n] == others[row, m]:
                    scores[n] += each * weights[row, m]
                n = after[n]
    for n in range(keys.shape[0]):
        row = place_of(index, keys[n])
        if row < 0:
            scores[n] = 0
        elif scores[n] > 0:
            scores[n] *= _rising(visits, last_ms, row, now_ms, half_lives)


class Covisits:
    """The rows of all items. Readers of the same visits and removals, in order, have the same bits."""

    def __init__(self, config: CovisitConfig) -> None:
        self.config = config
        self._half_lives = np.array([config.pairs_h, config.trend_h]) * _HOUR_MS
        columns: Arrays = {
            "others": np.zeros((8, NEIGHBOURS), np.int64),
            "weights": np.zeros((8, NEIGHBOURS), np.float32),
            "visits": np.zeros((8, 2), np.float32),
            "last_ms": np.zeros(8, np.int64),
        }
        self._ids = IdMap(columns=columns)
        # Of a reading, between two of which all scores are 0; as many as rows, or more.
        self._scores, self._rows = np.zeros(0), np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, visits_VC: Keys) -> None:
        """Adds visits in order."""
        if not len(visits_VC):
            return
        keys = np.ascontiguousarray(visits_VC[:, 2:])
        present = keys != 0
        rows = np.full(keys.shape, -1, np.int64)
        rows[present] = self._ids.insert(keys[present])
        others, weights, counts, last_ms = self._ids.columns.values()
        _add(others, weights, counts, last_ms, visits_VC, rows, self._half_lives)

    def near(self, history_T: Keys, weights_T: Doubles, now_ms: int) -> tuple[Keys, Doubles]:
        """Keys of items near a history, in no particular order, and their scores."""
        if len(self._scores) < len(self):
            size = max(1024, 2 * len(self))
            self._scores, self._rows = np.zeros(size), np.empty(size, np.int64)
        arguments = *self._read(history_T, weights_T, now_ms), self._scores, self._rows
        rows = self._rows[: _near(*arguments)]
        keys, scores = self._ids.keys[rows], self._scores[rows]
        self._scores[rows] = 0
        return keys, scores

    def of_history(
        self, history: Iterable[Entry], now_ms: int, visit: int | None = None
    ) -> tuple[Keys, Doubles]:
        """``near`` a session's history. Newer entries weigh more, and liked ones twice as much as others.
        ``visit``: number of the newest entries beside which the others weigh little."""
        keys, weights = _weighed(history)
        weights[visit if visit is not None else len(weights) :] *= _EARLIER
        return self.near(keys, weights, now_ms)

    def scores(self, keys_N: Keys, history: Iterable[Entry], now_ms: int) -> Doubles:
        """The score of each item by a session's history, 0 for one that isn't near."""
        scores_N = np.zeros(len(keys_N))
        arguments = *self._read(*_weighed(history), now_ms), np.ascontiguousarray(keys_N), scores_N
        _near_each(*arguments)
        return scores_N

    def _read(self, history_T: Keys, weights_T: Doubles, now_ms: int) -> tuple[Any, ...]:
        """What kernels read."""
        return self._ids.index, *self._ids.columns.values(), history_T, weights_T, now_ms, self._half_lives

    def add_within_limit(self, visits_VC: Keys) -> Keys:
        """Adds visits, and removes the rows beyond the limit; returns their keys."""
        self.add(visits_VC)
        gone = self.surplus()
        self.remove(gone)
        return gone

    def surplus(self) -> Keys:
        """Keys of rows beyond the limit, least recently visited first; none before they are a fraction."""
        excess = len(self) - self.config.items
        if excess * _FRACTION <= self.config.items:
            return np.empty(0, np.int64)
        order = np.lexsort((self._ids.keys, self._ids.columns["last_ms"][: len(self)]))
        return self._ids.keys[order[:excess]]

    def remove(self, keys: Keys) -> None:
        if not len(keys):
            return
        rows = self._ids.find(keys)
        self._ids.remove(rows[rows >= 0])

    def export(self, start: int = 0, stop: int | None = None) -> CovisitRows:
        """A range of the rows, without the neighbours that none of them has."""
        rows = slice(start, len(self) if stop is None else min(stop, len(self)))
        others, weights, visits, last_ms = (column[rows] for column in self._ids.columns.values())
        used = int(np.flatnonzero((weights > 0).any(0)).max(initial=-1)) + 1
        parts = self._ids.keys[rows], others[:, :used], weights[:, :used], visits, last_ms
        return CovisitRows(*(part.tobytes() for part in parts))

    def put(self, exported: CovisitRows) -> None:
        """Sets rows of an export."""
        keys = np.frombuffer(exported.keys, np.int64)
        columns: Arrays = {"others": np.zeros((len(keys), NEIGHBOURS), np.int64)}
        columns["weights"] = np.zeros((len(keys), NEIGHBOURS), np.float32)
        for name in columns:
            own = np.frombuffer(getattr(exported, name), columns[name].dtype)
            own = own.reshape(len(keys), -1) if len(keys) else own.reshape(0, 0)
            columns[name][:, : own.shape[1]] = own
        columns["visits"] = np.frombuffer(exported.visits, np.float32).reshape(-1, 2)
        columns["last_ms"] = np.frombuffer(exported.last_ms, np.int64)
        self._ids.put(keys, columns)


def _weighed(history: Iterable[Entry]) -> tuple[Keys, Doubles]:
    """Keys (T,) of a history's items, newest first, and how much each weighs."""
    entries = list(history)[::-1]
    keys = np.array([entry.keys[0] for entry in entries], np.int64)
    liked = np.array([entry.outcomes[0] > 0 for entry in entries], np.float64)
    return keys, NEWER ** np.arange(len(entries)) * (0.5 + 0.5 * liked)


class Visits:
    """Makes visits of engagements: remembers the newest items of each viewer, of whom those that were away
    for longest are forgotten: each of several tables remembers its part of them."""

    def __init__(self, config: CovisitConfig, tables: int = 1) -> None:
        self.most, self.forgotten = max(1, config.users // tables), 0
        self.users: OrderedDict[int, bytes] = OrderedDict()
        self._new: list[tuple[int, ...]] = []

    def add(self, user_id: Id, item: int, now_ms: int, sign: int = 1) -> None:
        """Adds an engagement with an item, by its key. One of the viewer's newest items makes no pairs."""
        user = key_of("user", user_id)
        before = _ITEMS.unpack(self.users.pop(user, _NONE))
        again = item in before
        self._new.append((now_ms, sign, item, *((0,) * PREVIOUS if again else before)))
        self.users[user] = _ITEMS.pack(*(before if again else (item, *before[:-1])))
        if len(self.users) > self.most:
            self.users.popitem(last=False)
            self.forgotten += 1

    def forget(self, user_id: Id) -> None:
        self.users.pop(key_of("user", user_id), None)

    def take(self) -> Keys:
        """The visits since the last call (V, C)."""
        if not self._new:
            return np.empty((0, COLUMNS), np.int64)
        taken, self._new = np.array(self._new, np.int64).reshape(-1, COLUMNS), []
        return taken
