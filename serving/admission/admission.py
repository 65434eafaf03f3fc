"""Decides which requests are admitted: one whose answer would come too late is refused at once. Pure.

A request waits for those before it: their number times the time of one answer. A queue that empties now and
then is a burst, and may grow until the deadline. One that hasn't been empty for 30 ms and five answers delays
every answer without increasing throughput, so it is cut short (CoDel: Nichols and Jacobson, "Controlling
queue delay", 2012). It stays so for a moment after a refusal: under overload, what was held up on its way
comes at once, just when the queue has run empty for lack of it.
"""

import math
from collections import OrderedDict
from typing import Final

ONGOING, WAIT, CLIENT = "ongoing", "wait", "client"  # reasons for a refusal
EVENT_CALLS: Final = 100  # with events, in progress in a replica, in addition to lists
_LEAST: Final = 4  # always admitted: fewer would leave the thread without work
_INTERVAL_S: Final = 0.03  # without an empty queue, before it counts as standing
_ANSWERS: Final = 5  # given meanwhile: behind a loop that hung for a moment no queue stands
_MEMORY_S: Final = 0.1  # after a refusal, in which a queue that ran empty still counts as standing
_IO_WINDOW_S: Final = 1.0  # during which the shortest I/O wait counts
_SMOOTHING: Final = 0.05
_FIRST_S: Final = 0.005  # assumed time of an answer, until one was observed
_CLIENTS: Final = 10_000  # remembered at a time; a forgotten one restarts with a full bucket


class Limit:
    """Limits the requests in progress. Times are seconds of one monotonic clock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.inside = 0

    def refusal(self, now_s: float) -> str:
        """Reason for refusing the next request; empty if it is admitted."""
        return ONGOING if self.inside >= self.most else ""

    def enter(self, now_s: float) -> None:
        self.inside += 1

    def leave(self, now_s: float) -> None:
        self.inside -= 1


class Admission(Limit):
    """Limit for a single thread: refuses a request that would wait longer than ``deadline_s``, or longer than
    ``queue_s`` behind a standing queue."""

    def __init__(self, deadline_s: float, queue_s: float, most: int) -> None:
        super().__init__(most)
        self.deadline_s, self.queue_s = deadline_s, queue_s
        self.answer_s = _FIRST_S  # smoothed time between two answers while requests are inside
        self._since_s = 0.0
        self._empty_s = -math.inf  # when the queue was last empty
        self._answers = 0  # given since
        self._refused_s = -math.inf  # when a request was last refused
        self._io_s, self._io_at_s = 0.0, -math.inf

    def refusal(self, now_s: float) -> str:
        if self.inside < min(_LEAST, self.most):
            return ""
        if reason := super().refusal(now_s):
            return reason
        limit_s = self.queue_s if self.has_standing_queue(now_s) else self.deadline_s
        if self._wait_s() <= limit_s:
            return ""
        self._refused_s = now_s
        return WAIT

    def has_standing_queue(self, now_s: float) -> bool:
        is_standing = self._answers >= _ANSWERS and now_s - self._empty_s > _INTERVAL_S
        return is_standing or now_s - self._refused_s < _MEMORY_S

    def enter(self, now_s: float) -> None:
        if self.inside == 0:
            self._since_s = self._empty_s = now_s
            self._answers = 0
        super().enter(now_s)

    def observe_io_wait(self, took_s: float, now_s: float) -> None:
        """Notes a request's wait for sessions and shards, which occupies no thread. The shortest of a second
        is the latency of the store; anything beyond it is queueing for the thread."""
        if took_s <= self._io_s or now_s - self._io_at_s > _IO_WINDOW_S:
            self._io_s, self._io_at_s = took_s, now_s

    def leave(self, now_s: float) -> None:
        """Notes an answer, and the time since the one before it or since the queue was empty."""
        self.answer_s += _SMOOTHING * (now_s - self._since_s - self.answer_s)
        self._since_s = now_s
        super().leave(now_s)
        self._answers += 1
        if self._wait_s() < self.answer_s / 2:
            self._empty_s, self._answers = now_s, 0

    def _wait_s(self) -> float:
        """Expected wait of the next request for the thread, by Little's law, without I/O wait."""
        return self.inside * self.answer_s - self._io_s


class TokenBuckets:
    """Token buckets by name: ``rate`` tokens a second, with bursts of ``burst_s`` seconds' worth; 0: no
    limit. A call may have a rate of its own."""

    def __init__(self, rate: float = 0.0, clients: int = _CLIENTS, burst_s: float = 1.0) -> None:
        self._rate, self._clients, self._burst_s = rate, clients, burst_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of when

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: str, now_s: float, rate: float | None = None, burst: float = 0.0) -> float:
        """Takes a token and returns 0; without one returns the seconds until the next. ``burst``: size of the
        bucket, 0: by the rate."""
        rate = self._rate if rate is None else rate
        if rate <= 0:
            return 0.0
        most = max(1.0, burst or rate * self._burst_s)
        tokens, at_s = self._buckets.pop(client, (most, now_s))
        tokens = min(most, tokens + max(0.0, now_s - at_s) * rate)
        wait_s = 0.0 if tokens >= 1.0 else (1.0 - tokens) / rate
        self._buckets[client] = (tokens if wait_s else tokens - 1.0, now_s)
        if len(self._buckets) > self._clients:
            self._buckets.popitem(last=False)
        return wait_s
