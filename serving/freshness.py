"""How long a click takes to be known: to the session, and to the model that answers. Pure.

The clock is that of one process: it starts when an event was acknowledged here. To the session it ends when
the store has a session folded past the event (one event at a time is followed, by looking every few ms); to
the model, when the first step is applied here whose range covers the click's example.
"""

from collections import OrderedDict, deque
from typing import Final

from recsys.hashing import Id
from recsys.records import Range

KEPT: Final = 5_000  # clicks followed at a time: older ones are let go


class Delays:
    """The newest delays in ms, and their percentiles."""

    def __init__(self, limit: int = 500) -> None:
        self._newest: deque[float] = deque(maxlen=limit)

    def __len__(self) -> int:
        return len(self._newest)

    def add(self, delay_ms: float) -> None:
        self._newest.append(max(0.0, delay_ms))

    def percentile(self, share: float) -> float | None:
        """The delay that ``share`` (0 to 1) of them don't exceed; None where there are none."""
        if not self._newest:
            return None
        ordered = sorted(self._newest)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


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
        self.to_session, self.to_served = Delays(), Delays()
        self._unjoined: OrderedDict[tuple[str, str], int] = OrderedDict()  # request, item -> ms
        self._unlearned: dict[int, deque[tuple[int, int]]] = {}  # partition -> (example offset, ms)

    def acknowledged(self, request_id: str, item_id: Id, now_ms: int) -> None:
        """A view was committed."""
        self._unjoined.setdefault((request_id, str(item_id)), now_ms)
        if len(self._unjoined) > KEPT:
            self._unjoined.popitem(last=False)

    def example(self, partition: int, offset: int, request_id: str, item_id: Id) -> None:
        """An example stands at ``offset`` of a partition of ``examples``."""
        at_ms = self._unjoined.pop((request_id, str(item_id)), None)
        if at_ms is not None:
            self._unlearned.setdefault(partition, deque(maxlen=KEPT)).append((offset, at_ms))

    def learned(self, ranges: list[Range], now_ms: int) -> None:
        """A step that learned these examples is applied here, and with it all before."""
        for there in ranges:
            waiting = self._unlearned.get(there.partition)
            while waiting and waiting[0][0] < there.stop:
                self.to_served.add(now_ms - waiting.popleft()[1])
