"""Ticks: advance event time on idle partitions.

Windows close when event time passes their end; so a partition of ``events`` that was idle for a second gets a
tick, with those that were idle for half of one. Its time is that of the newest record plus the time since it
arrived: after historical events, an outage or a clock that was set, event time continues instead of jumping.
Where event time runs at a multiple, a tick a second of the machine's time carries more of it.
A partition without any event gets no tick. A second ticker would be harmless, since time only advances.
"""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Final

from recsys.clock import timer_of
from recsys.events.event_types import Rejected, Tick, decode, encode
from recsys.events.records import EVENTS
from recsys.log.protocol import Append, Log, newest_first

EVERY_MS: Final = 1_000
_BACK: Final = 20_000  # records read backwards at most


class Ticker:
    """Appends a tick to each idle partition of ``events``. ``turn`` is cheap to call often."""

    def __init__(self, log: Log, clock: Callable[[], int]) -> None:
        """``clock``: milliseconds; the latest time of a tick."""
        self._log, self._clock, self._timer_ms = log, clock, timer_of(clock)
        self._partitions = log.partitions(EVENTS)
        self._moved: dict[int, tuple[int, int, int]] = {}  # partition -> (end, since when, in event time)
        self._looked_ms = -EVERY_MS  # time of the newest check

    def turn(self) -> int:
        """Returns the number of ticks appended."""
        timer_ms, now_ms = self._timer_ms(), self._clock()
        passed_ms = timer_ms - self._looked_ms
        if 0 <= passed_ms < EVERY_MS // 4:
            return 0
        self._looked_ms, moved = timer_ms, (timer_ms, now_ms)
        if not 0 <= passed_ms <= 60_000:  # the clock was set, or this process stood still
            self._moved = {p: (end, *moved) for p, (end, *_) in self._moved.items()}
        idle_ms: dict[int, int] = {}
        for partition in range(self._partitions):
            end = self._log.end(EVENTS, partition)
            seen, since_ms, _ = self._moved.get(partition, (-1, *moved))
            if end != seen:
                self._moved[partition] = (end, *moved)
            else:
                idle_ms[partition] = timer_ms - since_ms
        if max(idle_ms.values(), default=0) < EVERY_MS:
            return 0
        ticks = []
        for partition, idle in idle_ms.items():
            end, _, since_ms = self._moved[partition]
            # The others come together: each append wakes all consumers. The clock may stand still.
            if idle < EVERY_MS // 2 or now_ms == since_ms:
                continue
            newest_ms = self._newest_ms(partition, end)
            if newest_ms is None:
                self._moved[partition] = (end, *moved)  # looked for again in a second
                continue
            time_ms = min(now_ms, newest_ms + now_ms - since_ms)
            ticks.append(Append(partition, b"", encode(Tick(time_ms=time_ms))))
        if ticks:
            offsets = self._log.append(EVENTS, ticks)
            for tick, offset in zip(ticks, offsets, strict=True):
                # Idle time counts from now, not from the next check.
                self._moved[tick.partition] = (offset + 1, *moved)
        return len(ticks)

    def _newest_ms(self, partition: int, end: int) -> int | None:
        """The time of the newest readable record, or None."""
        for record in islice(newest_first(self._log, EVENTS, partition, stop=end), _BACK):
            with suppress(Rejected):
                return decode(record.value).time_ms
        return None
