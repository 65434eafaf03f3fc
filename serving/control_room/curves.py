"""How some samples went over the last two hours: a point every few seconds. Pure."""

import math
import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from serving.control_room.exposition import Samples, name_of

EVERY_MS: Final = 5_000
POINTS: Final = 1_440
_MOST: Final = 40  # series: labels come from outside
# What is drawn as a curve.
FOLLOWED: Final = frozenset(
    f"recsys_{name}"
    for name in (
        "trainer_auc", "trainer_normalized_entropy", "trainer_calibration", "trainer_view_to_learned_p95_ms",
        "session_fold_click_to_session_p95_ms", "view_to_served_p95_ms", "joiner_view_to_example_p95_ms",
    )
)  # fmt: skip
Points = list[tuple[int, float]]


class Curves:
    """Told as often as one likes; keeps a point of each series when its time has come. Any thread may ask."""

    def __init__(self, every_ms: int = EVERY_MS, points: int = POINTS) -> None:
        self._every_ms, self._points = every_ms, points
        self._kept: dict[str, deque[tuple[int, float]]] = {}
        self._due_ms = 0
        self._lock = threading.Lock()

    def tell(self, samples: Samples, now_ms: int) -> Samples:
        """Returns what was kept: empty where it is too soon."""
        if now_ms < self._due_ms:
            return {}
        self._due_ms = now_ms + self._every_ms
        found = {s: v for s, v in samples.items() if name_of(s) in FOLLOWED and math.isfinite(v)}
        with self._lock:
            self._make_room(found, now_ms)
            kept = {s: v for s, v in found.items() if s in self._kept}
            for series, value in kept.items():
                self._kept[series].append((now_ms, value))
        return kept

    def all(self, series: Iterable[str] = ()) -> dict[str, Points]:
        """Every point of these series; of all, without any."""
        with self._lock:
            names = [name for name in series or self._kept if name in self._kept]
            return {name: list(self._kept[name]) for name in names}

    def _make_room(self, found: Samples, now_ms: int) -> None:
        """What had no point for as long as points are kept leaves; for a new series also the one that had
        none for the longest time, as long as it isn't told of now."""
        since_ms = now_ms - self._every_ms * self._points
        self._kept = {s: its for s, its in self._kept.items() if its[-1][0] > since_ms}
        gone = sorted(
            (s for s in self._kept if s not in found), key=lambda s: -self._kept[s][-1][0]
        )
        for series in found:
            if series in self._kept:
                continue
            if len(self._kept) >= _MOST and gone:
                del self._kept[gone.pop()]
            if len(self._kept) < _MOST:
                self._kept[series] = deque(maxlen=self._points)
