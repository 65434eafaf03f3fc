"""Ticks: event time goes on where nothing happens.

A window closes when event time passes its end, and event time moves with events; so where a partition of
``events`` has had none for a second, a tick is appended. Where a partition never had any, no window waits,
and a past may still be written to it: it isn't ticked. One process of a system does that, the part of the
sequencer; two that tick at once would do no harm, since time only goes forward.
"""

from collections.abc import Callable, Sequence
from typing import Final

from recsys.events import Tick, encode
from recsys.log import Append, Log
from recsys.records import EVENTS

EVERY_MS: Final = 1_000


class Idle:
    """Which partitions have had no append for a while, from where they end. Pure."""

    def __init__(self, every_ms: int = EVERY_MS) -> None:
        self.every_ms = every_ms
        self._moved: dict[int, tuple[int, int]] = {}  # partition -> (end, since when)

    def due(self, ends: Sequence[int], now_ms: int) -> list[int]:
        """The partitions that need a tick now, given the ends of all."""
        found = []
        for partition, end in enumerate(ends):
            seen, since_ms = self._moved.get(partition, (-1, now_ms))
            if end != seen:
                self._moved[partition] = (end, now_ms)
            elif now_ms - since_ms >= self.every_ms:
                found.append(partition)
        return found


class Ticker:
    """Appends a tick to each partition of ``events`` that is idle. ``turn`` is cheap to call often."""

    def __init__(self, log: Log, clock: Callable[[], int], every_ms: int = EVERY_MS) -> None:
        """``clock``: milliseconds; the ticks' event time."""
        self._log, self._clock = log, clock
        self._idle = Idle(every_ms)
        self._partitions = log.partitions(EVENTS)
        self._look_ms = 0  # when the ends are looked at next

    def turn(self) -> int:
        """Returns how many ticks it appended."""
        now_ms = self._clock()
        if now_ms < self._look_ms:
            return 0
        self._look_ms = now_ms + self._idle.every_ms // 10
        ends = [self._log.end(EVENTS, partition) for partition in range(self._partitions)]
        due = [partition for partition in self._idle.due(ends, now_ms) if ends[partition] > 0]
        if due:
            value = encode(Tick(time_ms=now_ms))
            self._log.append(EVENTS, [Append(partition, b"", value) for partition in due])
        return len(due)
