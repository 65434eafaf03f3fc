"""The newest of some delays, and their percentiles. Pure.

Bounded, and exact over what is kept: a batch is one copy into a ring; percentiles are made when asked for.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEWEST: Final = 500
# A view that is older came from a log that is replayed, or its client was away: it tells of no delay here.
RECENT_MS: Final = 60_000


class Delays:
    """The newest ``limit`` delays in ms. One thread uses it."""

    def __init__(self, limit: int = NEWEST) -> None:
        self._ring: NDArray[np.float64] = np.zeros(limit)
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, len(self._ring))

    def add(self, delay_ms: float) -> None:
        self._ring[self._added % len(self._ring)] = max(0.0, delay_ms)
        self._added += 1

    def since(self, ended_ms: ArrayLike, now_ms: int) -> None:
        """Adds what passed since each of some moments (N,), in order, but for old ones and those to come."""
        passed = now_ms - np.asarray(ended_ms, np.float64)
        passed = passed[(passed >= 0) & (passed < RECENT_MS)][-len(self._ring) :]
        places = (self._added + np.arange(len(passed))) % len(self._ring)
        self._ring[places] = passed
        self._added += len(passed)

    def percentile(self, share: float) -> float | None:
        """The delay that ``share`` (0 to 1) of them don't exceed; None where there are none."""
        if not self._added:
            return None
        ordered = np.sort(self._ring[: len(self)])
        return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])
