"""Running counters that forget: how often an entity was shown and what viewers did, lately and for long.

A counter is a sum of what happened, each weighted by 2^(-age / half-life). Two half-lives stand side by side:
the fast one follows the hour, the slow one the week. Decay is by event time and additions commute, so the
order in which partitions are read changes no more than the last bits.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# C columns of a row = speeds × kinds; kinds = shown, each label, watch (sum of log1p seconds)
HALF_LIVES_MS: Final = (6 * 3_600_000.0, 14 * 24 * 3_600_000.0)  # fast, slow
SPEEDS: Final = len(HALF_LIVES_MS)

Keys = NDArray[np.int64]
Values = NDArray[np.float32]


class Counters:
    """Counter rows by 64-bit key: values float32 (n, C), as of their own last time. 0 is no key."""

    def __init__(self, kinds: int, capacity: int = 16) -> None:
        self.kinds = kinds
        self.columns = SPEEDS * kinds
        self._row: dict[int, int] = {}
        self._values = np.zeros((capacity, self.columns), np.float32)
        self._last_ms = np.zeros(capacity, np.int64)

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, key: int) -> bool:
        return key in self._row

    def add(self, keys: Iterable[int], amounts: NDArray[np.float32], now_ms: int) -> None:
        """Adds ``amounts`` (kinds,) to every key's counters. Keys must not repeat."""
        rows = [self._row_of(key) for key in keys]
        if not rows:
            return
        age_ms = now_ms - self._last_ms[rows]
        new = np.concatenate((amounts,) * SPEEDS)
        if age_ms.min() < 0:
            # What comes late is aged to the row's time; what comes in order ages the row to its own.
            late = np.repeat(_fade(np.maximum(-age_ms, 0)), self.kinds, axis=1)
            new, age_ms = late * new, np.maximum(age_ms, 0)
        fade = np.repeat(_fade(age_ms), self.kinds, axis=1)
        self._values[rows] = self._values[rows] * fade + new
        self._last_ms[rows] += age_ms

    def read(self, keys: Keys, now_ms: int) -> Values:
        """Counters as of ``now_ms``, shape keys.shape + (C,); zeros for 0 and for keys never added."""
        flat, get = keys.ravel(), self._row.get
        there = np.flatnonzero(flat)  # most places of a request's keys are empty
        rows = np.array([get(key, -1) for key in flat[there].tolist()], np.int64)
        there, rows = there[rows >= 0], rows[rows >= 0]
        fade = _fade(np.maximum(now_ms - self._last_ms[rows], 0))
        values = self._values[rows].reshape(len(rows), SPEEDS, self.kinds) * fade[:, :, None]
        out = np.zeros((flat.size, self.columns), np.float32)
        out[there] = values.reshape(len(rows), self.columns)
        return out.reshape(*keys.shape, self.columns)

    def export(self, keys: Sequence[int] | None = None) -> tuple[Keys, Values, NDArray[np.int64]]:
        """Keys, values and times of the given keys (all, without), as they are."""
        chosen = list(self._row) if keys is None else [key for key in keys if key in self._row]
        rows = [self._row[key] for key in chosen]
        return np.array(chosen, np.int64), self._values[rows], self._last_ms[rows]

    def set(self, keys: Keys, values: Values, last_ms: NDArray[np.int64]) -> None:
        """Overwrites rows with absolute values: doing it twice does no harm."""
        rows = [self._row_of(key) for key in keys.tolist()]
        self._values[rows] = values
        self._last_ms[rows] = last_ms

    def keep_newest(self, limit: int) -> int:
        """Drops the rows longest untouched so that ``limit`` remain; returns how many went."""
        surplus = len(self._row) - limit
        if surplus <= 0:
            return 0
        keys, values, last_ms = self.export()
        kept = np.sort(np.argsort(last_ms, kind="stable")[surplus:])
        self._row = {}
        self._values = np.zeros((max(16, limit), self.columns), np.float32)
        self._last_ms = np.zeros(max(16, limit), np.int64)
        self.set(keys[kept], values[kept], last_ms[kept])
        return surplus

    def _row_of(self, key: int) -> int:
        row = self._row.get(key)
        if row is None:
            row = self._row[key] = len(self._row)
            if row >= len(self._values):
                self._values = np.concatenate([self._values, np.zeros_like(self._values)])
                self._last_ms = np.concatenate([self._last_ms, np.zeros_like(self._last_ms)])
        return row


_HALF = np.array(HALF_LIVES_MS)


def _fade(age_ms: NDArray[np.int64]) -> NDArray[np.float32]:
    """2^(-age / half-life) for every age and speed, (n, speeds)."""
    faded: NDArray[np.float32] = np.exp2(-age_ms[:, None] / _HALF).astype(np.float32)
    return faded


def amounts(
    kinds: Sequence[str], happened: str, watch_ms: int | None = None
) -> NDArray[np.float32]:
    """What one event adds: 1 in the column of its kind, the logarithm of its seconds under ``watch``."""
    added = np.zeros(len(kinds), np.float32)
    if happened in kinds:
        added[list(kinds).index(happened)] = 1.0
    if watch_ms is not None and happened == "view":
        added[kinds.index("watch")] = np.log1p(watch_ms / 1000.0)
    return added
