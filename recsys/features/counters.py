"""Running counters with exponential decay: impressions and engagements of an entity, recent and long-term.

A counter is a sum of events, each weighted by 2^(-age / half-life), at several half-lives. Decay is by event
time and additions commute: the order of partitions changes only the last bits.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.id_map import IdMap
from recsys.arrays.key_index import place_of
from recsys.features import counter_kernels as kernels

# C columns of a row = speeds × kinds; kinds = shown, each label, watch (sum of log1p seconds)

# Half-lives where a feature set declares none.
HALF_LIVES_MS: Final = (6 * 3_600_000.0, 14 * 24 * 3_600_000.0)

Keys = NDArray[np.int64]
Values = NDArray[np.float32]


class CounterTable:
    """Counter rows by 64-bit key: values float32 (n, C), as of each row's last update. 0 is no key."""

    def __init__(
        self,
        kinds: int,
        capacity: int = 16,
        half_lives_ms: Sequence[float] | NDArray[np.float64] = HALF_LIVES_MS,
    ) -> None:
        self.kinds = kinds
        self.half_lives_ms = np.asarray(half_lives_ms, np.float64)
        self.speeds = len(half_lives_ms)
        self.columns = self.speeds * kinds
        self._begin(max(1, capacity))

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def arrays(self) -> tuple[Keys, Values, NDArray[np.int64]]:
        """Index, values and times as ``counter_kernels`` read them: views, valid until the next change."""
        return self._ids.index, self._ids.columns["values"], self._ids.columns["last_ms"]

    def __contains__(self, key: int) -> bool:
        return bool(place_of(self._ids.index, key) >= 0)

    def add(self, keys: Iterable[int], amounts: NDArray[np.float32], now_ms: int) -> None:
        """Adds ``amounts`` (kinds,) to every key's counters. Keys must not repeat."""
        keys_N, amounts = np.array(tuple(keys), np.int64), np.asarray(amounts, np.float32)
        self._ids.insert_by(kernels.add_keys, keys_N, self.half_lives_ms, amounts, now_ms)

    def touch(self, keys: Keys, now_ms: int, value: float = 0.0) -> Keys:
        """Makes an event the newest of some keys, with its value; returns the times of those before it, -1
        for none. Rows that are touched hold nothing else, and don't decay."""
        size, before = len(self), np.empty(len(keys), np.int64)
        rows = self._ids.insert(keys)
        _, values, last_ms = self.arrays
        kernels.touch(values, last_ms, rows, size, value, now_ms, before)
        return before

    def add_distinct(self, keys: Keys, kind: int, before: Keys, now_ms: int, sign: int = 1) -> None:
        """Counts a member of some keys that had its event before at these times, -1 for never, under a kind
        (its index). Keys must not repeat."""
        rows = self._ids.insert(keys)
        _, values, last_ms = self.arrays
        kernels.add_distinct(values, last_ms, self.half_lives_ms, rows, kind, before, sign, now_ms)

    def read(self, keys: Keys, now_ms: int) -> Values:
        """Counters as of ``now_ms``, shape keys.shape + (C,); zeros for 0 and unknown keys."""
        out = np.zeros((keys.size, self.columns), np.float32)
        flat = np.ascontiguousarray(keys).ravel()
        kernels.read(*self.arrays, self.half_lives_ms, flat, now_ms, out)
        return out.reshape(*keys.shape, self.columns)

    def reserve(self, more: int) -> None:
        """Makes room for ``more`` keys. Other threads may read meanwhile, none may write."""
        self._ids.reserve(more)

    def export(self, keys: Sequence[int] | Keys | None = None) -> tuple[Keys, Values, Keys]:
        """Keys, values and times of the given keys (default: all), not decayed."""
        _, values, last_ms = self.arrays
        rows = np.arange(len(self)) if keys is None else self._ids.find(np.array(keys, np.int64))
        rows = rows[rows >= 0]
        return self._ids.keys[rows], values[rows], last_ms[rows]

    def set(self, keys: Keys, values: Values, last_ms: NDArray[np.int64]) -> None:
        """Overwrites rows with absolute values; idempotent."""
        self._ids.put(keys, {"values": values, "last_ms": last_ms})

    def put(self, keys: bytes, values: bytes, last_ms: bytes) -> Keys:
        """``set`` of arrays as they are stored; returns the keys. Raises ValueError where numbers differ."""
        rows = np.frombuffer(values, np.float32).reshape(-1, self.columns)
        own, times = np.frombuffer(keys, np.int64), np.frombuffer(last_ms, np.int64)
        if len(sizes := {len(own), len(rows), len(times)}) > 1:
            raise ValueError(f"keys, values and times are {sizes}, expected as many of each")
        self.set(own, rows, times)
        return own

    def drop(self, keys: Keys) -> None:
        """Drops the rows of some keys."""
        rows = self._ids.find(np.unique(keys))
        self._ids.remove(rows[rows >= 0])

    def keep_newest(self, limit: int) -> Keys:
        """Drops the least recently updated rows so that ``limit`` remain; returns their keys."""
        keys, values, last_ms = self.export()
        oldest, newest = np.split(np.argsort(last_ms, kind="stable"), [max(0, len(self) - limit)])
        if len(oldest):
            newest.sort()
            self._begin(max(16, limit))
            self.set(keys[newest], values[newest], last_ms[newest])
        return keys[oldest]

    def _begin(self, capacity: int) -> None:
        values = np.zeros((capacity, self.columns), np.float32)
        last_ms = np.zeros(capacity, np.int64)
        self._ids = IdMap(capacity, columns={"values": values, "last_ms": last_ms})


def added_up(tables: Sequence[CounterTable], keys: Keys, touched: bool) -> tuple[Values, Keys]:
    """Values (N, C) and times (N,) of sorted keys, added up over tables as of the newest event of each key.
    Rounding depends on the order of additions: it is that of the tables. For keys that were
    ``touched`` the newest event stays, and the larger of two at one time, as ``touch`` has it."""
    newest_ms, parts = np.full(len(keys), -1, np.int64), []
    for table in tables:
        own, values, last_ms = table.export(keys)
        places = np.searchsorted(keys, own)
        newest_ms[places] = np.maximum(newest_ms[places], last_ms)
        parts.append((places, values, last_ms))
    rows = np.full((len(keys), tables[0].columns), -np.inf if touched else 0, np.float32)
    for places, values, last_ms in parts:
        ages = (newest_ms[places] - last_ms)[:, None]
        if touched:
            rows[places] = np.maximum(rows[places], np.where(ages > 0, -np.inf, values))
        else:
            left = np.exp2(-ages / tables[0].half_lives_ms).astype(np.float32)
            rows[places] += values * np.repeat(left, tables[0].kinds, 1)
    rows[np.isinf(rows)] = 0  # in no table any more
    return rows, newest_ms


def amounts(kinds: Sequence[str], happened: str, watch_ms: int | None = None) -> Values:
    """The increment of one event: 1 in the column of its kind, log seconds under ``watch``."""
    added = _one(tuple(kinds), happened).copy()
    if watch_ms is not None and happened == "view":
        added[kinds.index("watch")] = np.log1p(watch_ms / 1000.0)
    return added


@lru_cache(maxsize=4096)
def _one(kinds: tuple[str, ...], happened: str) -> Values:
    """1 in the column of a kind, if it is one."""
    return np.array([kind == happened for kind in kinds], np.float32)
