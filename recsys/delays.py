"""The newest of some delays, and their percentiles. Pure.

Bounded, and exact over what is kept: a batch is one copy into a ring; percentiles are made when asked for.
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
STILL_MS: Final = 60_000  # after which nothing is told where nothing was added


class Delays:
    """The newest ``limit`` delays in ms. One thread uses it."""

    def __init__(self, limit: int = NEWEST) -> None:
        self._ring: NDArray[np.float64] = np.zeros(limit)
        self._added = 0
        self._newest_ms: int | None = None  # when something was added last

    def __len__(self) -> int:
        return min(self._added, len(self._ring))

    def add(self, delay_ms: float, now_ms: int | None = None) -> None:
        self._newest_ms = now_ms
        self._ring[self._added % len(self._ring)] = max(0.0, delay_ms)
        self._added += 1

    def since(self, ended_ms: ArrayLike, now_ms: int) -> None:
        """Adds what passed since each of some moments (N,), in order, ``MOST_MS`` at most; but for those of a
        past log and those to come."""
        passed = now_ms - np.asarray(ended_ms, np.float64)
        passed = passed[(passed >= 0) & (passed < _PAST_MS)][-len(self._ring) :]
        if not len(passed):
            return
        self._newest_ms = now_ms
        places = (self._added + np.arange(len(passed))) % len(self._ring)
        self._ring[places] = np.minimum(passed, MOST_MS)
        self._added += len(passed)

    def percentile(self, share: float, now_ms: int | None = None) -> float | None:
        """The delay that ``share`` (0 to 1) of them don't exceed; None where there are none, or by ``now_ms``
        none came of late: what a stage that stands still did before says nothing of now."""
        newest_ms = self._newest_ms
        if not self._added:
            return None
        if now_ms is not None and newest_ms is not None and now_ms - newest_ms > STILL_MS:
            return None
        ordered = np.sort(self._ring[: len(self)])
        return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])

    def p95(self, name: str, now_ms: int) -> dict[str, float]:
        """The 95th percentile as a gauge; no gauge where it isn't known."""
        found = self.percentile(0.95, now_ms)
        return {} if found is None else {name: round(found, 1)}
