"""The newest of some delays, and their percentiles. Pure.

Bounded, and exact over what is kept: a batch is one copy into a ring; percentiles are made when asked for,
and may be of what came of late alone: what a stage did before it stood still, or while a past log was played,
says nothing of now.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEWEST: Final = 500
# What took longer counts as this: a client that was away can't be told from a stage that is behind.
MOST_MS: Final = 60_000
_PAST_MS: Final = (
    86_400_000  # what is older came from a log that is replayed, and tells of no delay
)
LATE_MS: Final = 30_000  # for so long a delay counts


class Delays:
    """The newest ``limit`` delays in ms. One thread uses it."""

    def __init__(self, limit: int = NEWEST) -> None:
        self._ring: NDArray[np.float64] = np.zeros(limit)
        self._at_ms: NDArray[np.int64] = np.zeros(limit, np.int64)  # when each was added
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._ring))

    def add(self, delay_ms: float, now_ms: int = 0) -> None:
        place = self._added % len(self._ring)
        self._ring[place], self._at_ms[place] = max(0.0, delay_ms), now_ms
        self._added += 1

    def since(self, ended_ms: ArrayLike, now_ms: int) -> None:
        """Adds what passed since each of some moments (N,), in order, ``MOST_MS`` at most; but for those of a
        past log and those to come."""
        passed = now_ms - np.asarray(ended_ms, np.float64)
        passed = passed[(passed >= 0) & (passed < _PAST_MS)][-len(self._ring) :]
        places = (self._added + np.arange(len(passed))) % len(self._ring)
        self._ring[places], self._at_ms[places] = np.minimum(passed, MOST_MS), now_ms
        self._added += len(passed)

    def percentile(self, share: float, now_ms: int | None = None) -> float | None:
        """The delay that ``share`` (0 to 1) of them don't exceed; None where there are none. With ``now_ms``,
        of those alone that came within ``LATE_MS``."""
        kept = self._ring[: len(self)]
        if now_ms is not None:
            kept = kept[now_ms - self._at_ms[: len(self)] <= LATE_MS]
        if not len(kept):
            return None
        ordered = np.sort(kept)
        return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])

    def p95(self, name: str, now_ms: int) -> dict[str, float]:
        """The 95th percentile as a gauge; no gauge where it isn't known."""
        found = self.percentile(0.95, now_ms)
        return {} if found is None else {name: round(found, 1)}
