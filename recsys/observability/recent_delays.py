"""Ring of the newest delays, with exact percentiles, also of recent additions only. Pure."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEWEST: Final = 500
# Longer delays are clipped: a client that was away can't be told from a stage that is behind.
MOST_MS: Final = 60_000
_PAST_MS: Final = 86_400_000  # older moments come from a replayed log and measure no delay
LATE_MS: Final = 30_000  # how long a delay counts as recent


class RecentDelays:
    """The newest ``limit`` delays in ms. For one thread."""

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
        """Adds the time since each moment (N,), in order, clipped to ``MOST_MS``. Skips moments of a replayed
        log and of the future."""
        passed = now_ms - np.asarray(ended_ms, np.float64)
        passed = passed[(passed >= 0) & (passed < _PAST_MS)][-len(self._ring) :]
        places = (self._added + np.arange(len(passed))) % len(self._ring)
        self._ring[places], self._at_ms[places] = np.minimum(passed, MOST_MS), now_ms
        self._added += len(passed)

    def percentile(self, share: float, now_ms: int | None = None) -> float | None:
        """The delay that a ``share`` (0 to 1) of the delays don't exceed; None without any. ``now_ms``: only
        delays added within ``LATE_MS`` of it."""
        delays = self._recent(now_ms)
        if not len(delays):
            return None
        return float(np.sort(delays)[min(len(delays) - 1, int(share * len(delays)))])

    def mean(self, now_ms: int) -> float | None:
        """The mean of those added within ``LATE_MS``; None without any."""
        delays = self._recent(now_ms)
        return float(delays.mean()) if len(delays) else None

    def _recent(self, now_ms: int | None) -> NDArray[np.float64]:
        delays = self._ring[: len(self)]
        return delays if now_ms is None else delays[now_ms - self._at_ms[: len(self)] <= LATE_MS]

    def p95(self, name: str, now_ms: int) -> dict[str, float]:
        """The 95th percentile as a gauge; empty if unknown."""
        delay_ms = self.percentile(0.95, now_ms)
        return {} if delay_ms is None else {name: round(delay_ms, 1)}
