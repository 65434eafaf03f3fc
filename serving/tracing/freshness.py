"""Measures how long a click takes to reach the session, and the model that answers. Pure.

The clock starts when this replica acknowledges an event. For the session it stops when the store holds a
session folded past the event (one event at a time is followed, by polling); for the model, when this replica
applies the step that learned from the click's example. Steps name some of their views, so that no replica
reads examples. Both are also measured from the end of the view
by the client's clock, without clients that were away.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

from recsys.events.hashing import Id, key_of
from recsys.events.records import SampledView
from recsys.observability.recent_delays import RecentDelays

FOLLOWED: Final = 20_000  # clicks at a time: older ones are given up
AWAY_MS: Final = 60_000  # a client that sends a view later than this was away, or replays the past


class Rate:
    """Rate per second over the last seconds, from a running total observed now and then."""

    def __init__(self, window_ms: int = 10_000) -> None:
        self._window_ms = window_ms
        self._totals: deque[tuple[int, float]] = deque()

    def observe(self, total: float, now_ms: int) -> None:
        if self._totals and now_ms < self._totals[-1][0]:  # the clock was set back
            self._totals.clear()
        self._totals.append((now_ms, total))
        while len(self._totals) > 2 and self._totals[0][0] < now_ms - self._window_ms:
            self._totals.popleft()

    def per_s(self) -> float:
        if len(self._totals) < 2 or self._totals[-1][0] == self._totals[0][0]:
            return 0.0
        (first_ms, first), (last_ms, last) = self._totals[0], self._totals[-1]
        return max(0.0, (last - first) * 1000.0 / (last_ms - first_ms))


class Freshness:
    """Follows acknowledged views to the session and to the model. Belongs to one thread."""

    def __init__(self) -> None:
        self.to_session, self.to_served = RecentDelays(), RecentDelays()  # since acknowledgement
        self.view_to_acknowledged, self.view_to_served = RecentDelays(), RecentDelays()
        # By key: request and item, time of acknowledgement, end of the view unless its client was away.
        self._waiting: OrderedDict[int, tuple[tuple[str, str], int, int | None]] = OrderedDict()
        # Learned, and not acknowledged here: by another replica, or a moment later.
        self._early: OrderedDict[int, None] = OrderedDict()
        self.learned_views: OrderedDict[tuple[str, str], None] = OrderedDict()  # the newest

    def percentiles(self, now_ms: int) -> dict[str, float | None]:
        """Median and 95th percentile of the last 30 s, since acknowledgement; None without any. The status,
        the metrics, the control room and the demo all show these."""
        delays = {"click_to_session": self.to_session, "click_to_served": self.to_served}
        shares = {"ms": 0.5, "p95_ms": 0.95}
        return {
            f"{name}_{unit}": measured.percentile(share, now_ms)
            for name, measured in delays.items()
            for unit, share in shares.items()
        }

    def acknowledged(self, request_id: str, item_id: Id, now_ms: int, ended_ms: int) -> None:
        """Follows a committed view. ``ended_ms``: its end by the client's clock."""
        view = request_id, str(item_id)
        key = key_of(*view)
        if key not in self._waiting:
            held_ms = now_ms - ended_ms
            present = 0 <= held_ms < AWAY_MS
            self._waiting[key] = view, now_ms, ended_ms if present else None
            if present:
                self.view_to_acknowledged.add(held_ms, now_ms)
            if key in self._early:
                del self._early[key]
                self._measure(key, now_ms)
        if len(self._waiting) > FOLLOWED:
            self._waiting.popitem(last=False)

    def learned(self, views: Iterable[SampledView], now_ms: int) -> list[tuple[str, SampledView]]:
        """Measures views of a step that was applied here; returns those acknowledged here, with their
        requests."""
        own = []
        for view in views:
            if view.key in self._waiting:
                own.append((self._measure(view.key, now_ms), view))
            else:
                self._early[view.key] = None
                if len(self._early) > FOLLOWED:
                    self._early.popitem(last=False)
        return own

    def _measure(self, key: int, now_ms: int) -> str:
        """Measures a waiting view; returns its request."""
        view, at_ms, ended_ms = self._waiting.pop(key)
        self.learned_views[view] = None
        if len(self.learned_views) > FOLLOWED:
            self.learned_views.popitem(last=False)
        self.to_served.add(now_ms - at_ms, now_ms)
        if ended_ms is not None:
            self.view_to_served.add(now_ms - ended_ms, now_ms)
        return view[0]
