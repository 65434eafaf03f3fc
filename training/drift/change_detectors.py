"""Tells when a stream of standardised numbers has changed: Page–Hinkley and ADWIN, of river.

The one adapter of river. A number is that of a block of examples (mean 0 and variance 1 as long as nothing
changes: training/drift/baseline.py), never of one example.
"""

from typing import Any, Final, Protocol

from river.drift import ADWIN, PageHinkley

_PINNED: Final = (
    60  # zeros that a Page–Hinkley begins with: what a standardised number is expected to be
)
_WINDOW: Final = 4  # ADWIN judges no part of fewer blocks


class ChangeDetector(Protocol):
    """``update`` takes the next number; True where the stream has changed. It begins anew after that."""

    name: str

    def update(self, number: float) -> bool: ...


class PageHinkleyDetector:
    """Sums how far numbers lie beyond ``slack``, and tells when the sum has risen by ``threshold`` (Page
    1954, "Continuous inspection schemes"). ``mode``: "up", "down" or "both"."""

    name = "page-hinkley"

    def __init__(self, slack: float, threshold: float, mode: str = "both") -> None:
        # alpha 1: with less, a sum that fell far rises by itself, and tells of changes that weren't there.
        self._river: Any = PageHinkley(
            min_instances=1, delta=slack, threshold=threshold, alpha=1.0, mode=mode
        )
        self._pin()

    def update(self, number: float) -> bool:
        self._river.update(number)
        found = bool(self._river.drift_detected)
        if found:
            self._pin()
        return found

    def _pin(self) -> None:
        """Its mean is a running one, so the first few numbers would count for what is usual."""
        for _ in range(_PINNED):
            self._river.update(0.0)


class AdwinDetector:
    """Keeps a window of numbers and tells when two parts of it differ (Bifet and Gavaldà 2007, "Learning from
    time-changing data with adaptive windowing"). ``confidence``: its δ, the chance of a false alarm."""

    name = "adwin"

    def __init__(self, confidence: float, scale: float = 1.0) -> None:
        """``scale`` multiplies each number: its bound takes numbers for such in [0, 1]."""
        self._scale = scale
        self._river: Any = ADWIN(  # type: ignore[no-untyped-call]
            delta=confidence, clock=1, min_window_length=_WINDOW, grace_period=2 * _WINDOW
        )

    def update(self, number: float) -> bool:
        self._river.update(self._scale * number)
        return bool(self._river.drift_detected)
