"""History of selected samples over the last hour: one point every few seconds. Pure."""

import math
import threading
from collections import deque
from typing import Final

from recsys.clock import is_due
from serving.control_room.exposition import Samples, name_of, without_label

EVERY_MS: Final = 5_000
POINTS: Final = 720
_MAX_SERIES: Final = 80  # a limit, since labels come from outside
# Metrics drawn as curves. A counter is drawn as its rate a second.
FOLLOWED: Final = frozenset(
    f"recsys_{name}"
    for name in (
        "trainer_auc", "trainer_normalized_entropy", "trainer_calibration", "trainer_rate", "part_lag",
        "answer_p50_ms", "answer_p99_ms", "degraded_share", "source_recall", "machine_memory_free_bytes",
        "disk_free_bytes",
    )
)  # fmt: skip
FOLLOWED_COUNTERS: Final = frozenset(
    ('recsys_events_total{status="accepted"}', 'recsys_requests_total{route="/v1/recommend",status="200"}')
)
Points = list[tuple[int, float]]


class Curves:
    """Ring buffers of points per series. Readable from any thread."""

    def __init__(self, every_ms: int = EVERY_MS, points: int = POINTS) -> None:
        self._every_ms, self._points = every_ms, points
        self._series: dict[str, deque[tuple[int, float]]] = {}
        self._counted: tuple[int, Samples] = (0, {})  # time and values of the counters at the last point
        self._due_ms = 0
        self._lock = threading.Lock()

    def observe(self, samples: Samples, now_ms: int) -> Samples:
        """Adds a point per followed series if one is due; returns the added points.

        Series of replicas are one: counters add up, and of other values the greatest counts.
        """
        if not is_due(now_ms, self._due_ms, self._every_ms):
            return {}
        self._due_ms = now_ms + self._every_ms
        current, counted = _followed(samples)
        current |= self._rates(counted, now_ms)
        with self._lock:
            self._make_room(current, now_ms)
            added = {s: v for s, v in current.items() if s in self._series}
            for series, value in added.items():
                self._series[series].append((now_ms, value))
        return added

    def all(self) -> dict[str, Points]:
        """All points by series."""
        with self._lock:
            return {name: list(points) for name, points in self._series.items()}

    def _rates(self, counted: Samples, now_ms: int) -> Samples:
        """Increase of each counter a second since the last point. None after a restart of its part."""
        (before_ms, before), self._counted = self._counted, (now_ms, counted)
        elapsed_s = (now_ms - before_ms) / 1_000
        grown = {s: value - before[s] for s, value in counted.items() if s in before}
        return {s: by / elapsed_s for s, by in grown.items() if by >= 0 and elapsed_s > 0}

    def _make_room(self, current: Samples, now_ms: int) -> None:
        """Drops series without a recent point; for a new series also the longest idle one."""
        since_ms = now_ms - self._every_ms * self._points
        self._series = {s: points for s, points in self._series.items() if points[-1][0] > since_ms}
        idle = [s for s in self._series if s not in current]
        idle.sort(key=lambda s: -self._series[s][-1][0])
        for series in current:
            if series in self._series:
                continue
            if len(self._series) >= _MAX_SERIES and idle:
                del self._series[idle.pop()]
            if len(self._series) < _MAX_SERIES:
                self._series[series] = deque(maxlen=self._points)


def _followed(samples: Samples) -> tuple[Samples, Samples]:
    """Followed values and counters, of all replicas together."""
    current, counted = Samples(), Samples()
    for series, value in samples.items():
        of_all = without_label(series, "replica")
        if not math.isfinite(value):
            continue
        if of_all in FOLLOWED_COUNTERS:
            counted[of_all] = counted.get(of_all, 0.0) + value
        elif name_of(of_all) in FOLLOWED:
            current[of_all] = max(current.get(of_all, value), value)
    return current, counted
