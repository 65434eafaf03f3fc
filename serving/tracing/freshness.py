"""How long a click takes to be known: to the session, and to the model that answers. Pure.

The clock is that of one process: it starts when an event was acknowledged here. To the session it ends when
the store has a session folded past the event (one event at a time is followed, by looking every few ms); to
the model, when the first step is applied here whose range covers the click's example.

A client gathers views before it sends them, so the same is told from the end of a view as well, by the
client's clock: until it was acknowledged here, and until the model has learned it. Where a client had been
away it says nothing of this system: that is judged once, by when the view came, so what takes long after that
is told as it is.
"""

from collections import OrderedDict, deque
from typing import Final

from recsys.events.hashing import Id
from recsys.events.records import Range
from recsys.observability.recent_delays import RecentDelays

KEPT: Final = 5_000  # clicks followed at a time: older ones are let go
AWAY_MS: Final = 60_000  # a client that sends a view so late was away, or plays the past again
_Times = tuple[int, int | None]


class Rate:
    """How much per second over the last seconds, from a sum that is told now and then."""

    def __init__(self, window_ms: int = 10_000) -> None:
        self._window_ms = window_ms
        self._sums: deque[tuple[int, float]] = deque()

    def tell(self, total: float, now_ms: int) -> None:
        self._sums.append((now_ms, total))
        while len(self._sums) > 2 and self._sums[0][0] < now_ms - self._window_ms:
            self._sums.popleft()

    def per_s(self) -> float:
        if len(self._sums) < 2 or self._sums[-1][0] == self._sums[0][0]:
            return 0.0
        (first_ms, first), (last_ms, last) = self._sums[0], self._sums[-1]
        return max(0.0, (last - first) * 1000.0 / (last_ms - first_ms))


class Freshness:
    """Follows acknowledged views to the session and to the model. One thread uses it."""

    def __init__(self) -> None:
        self.to_session, self.to_served = RecentDelays(), RecentDelays()
        self.view_to_acknowledged, self.view_to_served = RecentDelays(), RecentDelays()
        # request, item -> when it was acknowledged, when it had ended, where its client wasn't away
        self._unjoined: OrderedDict[tuple[str, str], _Times] = OrderedDict()
        # partition -> (example offset, the same two)
        self._unlearned: dict[int, deque[tuple[int, _Times]]] = {}

    def acknowledged(self, request_id: str, item_id: Id, now_ms: int, ended_ms: int) -> None:
        """A view was committed, that ended at ``ended_ms`` by its client's clock."""
        its = request_id, str(item_id)
        if its not in self._unjoined:
            held_ms = now_ms - ended_ms
            known = 0 <= held_ms < AWAY_MS
            self._unjoined[its] = now_ms, ended_ms if known else None
            if known:
                self.view_to_acknowledged.add(held_ms, now_ms)
        if len(self._unjoined) > KEPT:
            self._unjoined.popitem(last=False)

    def example(self, partition: int, offset: int, request_id: str, item_id: Id) -> None:
        """An example stands at ``offset`` of a partition of ``examples``."""
        times = self._unjoined.pop((request_id, str(item_id)), None)
        if times is not None:
            self._unlearned.setdefault(partition, deque(maxlen=KEPT)).append((offset, times))

    def learned(self, ranges: list[Range], now_ms: int) -> None:
        """A step that learned these examples is applied here, and with it all before."""
        for there in ranges:
            waiting = self._unlearned.get(there.partition)
            while waiting and waiting[0][0] < there.stop:
                _, (at_ms, ended_ms) = waiting.popleft()
                self.to_served.add(now_ms - at_ms)
                if ended_ms is not None:
                    self.view_to_served.add(now_ms - ended_ms, now_ms)
