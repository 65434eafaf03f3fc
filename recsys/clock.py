"""The clocks of a system.

*Event time* decides: times of records, windows, decay, ages, retention, quotas, tokens of lists, promotions.
Each part is handed a clock in milliseconds, which ``recsys.process.clock_file.clock_of`` makes from the
configuration: the machine's clock, or a ``Clock`` that runs at a multiple of it.

*Machine time* measures this machine and the world outside: heartbeats, timeouts, retries, deadlines, how
often something is saved or published, log lines, spans, expiry of keys and certificates. ``timer_of`` gives
it for a part's clock, so that a test hands in both as one. Only the modules that tests/test_clock.py lists,
with reasons, read the machine's clock by name.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

import msgspec

NO_LIMIT_MS: Final = 2**53


def machine_ns() -> int:
    """Now by the machine's clock, in nanoseconds since 1970."""
    return time.time_ns()


def machine_ms() -> int:
    """Now by the machine's clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Event time as a line: ``event_ms`` at the machine's ``machine_ns``, then ``speed`` times as fast. It
    stands still from the machine's ``until_ns`` on, and at the event time ``limit_ms``."""

    machine_ns: int
    event_ms: float
    speed: float
    until_ns: int
    limit_ms: float = NO_LIMIT_MS

    def at(self, now_ns: int) -> float:
        """Event time in ms at a time of the machine's clock; before ``machine_ns`` it stands still."""
        passed_ns = max(0, min(now_ns, self.until_ns) - self.machine_ns)
        return min(self.event_ms + self.speed * passed_ns / 1e6, self.limit_ms)


class Clock:
    """Event time that runs at another pace than the machine's, in ms. It never goes back: if a new pace
    would, it stands still until that pace reaches it. For any number of threads."""

    def __init__(self, pace: Callable[[], Pace], now_ns: Callable[[], int] = machine_ns) -> None:
        """``pace``: the newest pace, read at each call. ``now_ns``: the machine's clock."""
        self._pace, self._now_ns = pace, now_ns
        self._reached_ms, self._lock = 0, threading.Lock()

    def __call__(self) -> int:
        now_ms = int(self._pace().at(self._now_ns()))
        with self._lock:  # a thread that read the machine's clock earlier may come later
            self._reached_ms = max(self._reached_ms, now_ms)
            return self._reached_ms

    def timer_ms(self) -> int:
        """Machine time."""
        return self._now_ns() // 1_000_000


def timer_of(clock: Callable[[], int]) -> Callable[[], int]:
    """Machine time in ms for a part with this clock: the clock itself, unless that is a ``Clock``."""
    return clock.timer_ms if isinstance(clock, Clock) else clock


def is_due(now_ms: int, due_ms: int, every_ms: int) -> bool:
    """Whether what is done every ``every_ms``, next at ``due_ms``, is due. True also if ``due_ms`` lies more
    than ``every_ms`` ahead: the clock was set back."""
    return now_ms >= due_ms or due_ms - now_ms > every_ms


def parse_time_ms(text: str, utc_offset_h: float = 0.0) -> int:
    """Parses epoch milliseconds or ISO time; a time without a zone has this UTC offset. Raises ValueError."""
    if text.lstrip("-").isdigit():
        return int(text)
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone(timedelta(hours=utc_offset_h)))
    return int(moment.astimezone(UTC).timestamp() * 1000)
