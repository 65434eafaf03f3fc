"""History of selected samples over the last two hours: one point every few seconds. Pure."""

import math
import threading
from collections import deque
from typing import Final

from recsys.clock import is_due
from serving.control_room.exposition import Samples, name_of

EVERY_MS: Final = 5_000
POINTS: Final = 1_440
_MAX_SERIES: Final = 40  # a limit, since labels come from outside
# Metrics drawn as curves.
FOLLOWED: Final = frozenset(
    f"recsys_{name}"
    for name in (
        "trainer_auc", "trainer_normalized_entropy", "trainer_calibration", "trainer_view_to_learned_p95_ms",
        "session_fold_view_to_session_p95_ms", "view_to_served_p95_ms", "joiner_view_to_example_p95_ms",
    )
)  # fmt: skip
Points = list[tuple[int, float]]


class Curves:
    """Ring buffers of points per series. Readable from any thread."""

    def __init__(self, every_ms: int = EVERY_MS, points: int = POINTS) -> None:
        self._every_ms, self._points = every_ms, points
        self._series: dict[str, deque[tuple[int, float]]] = {}
        self._due_ms = 0
        self._lock = threading.Lock()

    def observe(self, samples: Samples, now_ms: int) -> Samples:
        """Adds a point per followed series if one is due; returns the added samples."""
        if not is_due(now_ms, self._due_ms, self._every_ms):
            return {}
        self._due_ms = now_ms + self._every_ms
        current = {s: v for s, v in samples.items() if name_of(s) in FOLLOWED and math.isfinite(v)}
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
