"""Detects changes in a stream of standardised numbers (training/drift/baseline.py), by river's Page–Hinkley
and ADWIN. A number describes a block of examples; it has mean 0 and variance 1 while nothing changes."""

from typing import Any, Final, Protocol

from river.drift import ADWIN, PageHinkley

_PRIOR_ZEROS: Final = 60  # zeros fed to a new Page–Hinkley: the expected mean
_WINDOW: Final = 4  # ADWIN judges no part of fewer blocks


class ChangeDetector(Protocol):
    """``update`` takes the next number; True when the stream has changed. The detector then restarts."""

    name: str

    def update(self, number: float) -> bool: ...


class PageHinkleyDetector:
    """Sums how far numbers exceed ``slack``; detects a change when the sum has risen by ``threshold`` (Page
    1954, "Continuous inspection schemes"). ``mode``: "up", "down" or "both"."""

    name = "page-hinkley"

    def __init__(self, slack: float, threshold: float, mode: str = "both") -> None:
        # alpha 1: below it, a sum that fell far rises by itself and raises false alarms.
        self._river: Any = PageHinkley(
            min_instances=1, delta=slack, threshold=threshold, alpha=1.0, mode=mode
        )
        self._pin()

    def update(self, number: float) -> bool:
        self._river.update(number)
        detected = bool(self._river.drift_detected)
        if detected:
            self._pin()
        return detected

    def _pin(self) -> None:
        """Pins the running mean near 0, so that the first few numbers don't define what is usual."""
        for _ in range(_PRIOR_ZEROS):
            self._river.update(0.0)


class AdwinDetector:
    """Keeps a window of numbers and detects when two parts of it differ (Bifet and Gavaldà 2007, "Learning
    from time-changing data with adaptive windowing"). ``confidence``: δ, the false alarm probability."""

    name = "adwin"

    def __init__(self, confidence: float) -> None:
        self._river: Any = ADWIN(  # type: ignore[no-untyped-call]
            delta=confidence, clock=1, min_window_length=_WINDOW, grace_period=2 * _WINDOW
        )

    def update(self, number: float) -> bool:
        self._river.update(number)
        return bool(self._river.drift_detected)
