"""Ticks: event time goes on where nothing happens.

A window closes when event time passes its end, and event time moves with events; so where a partition of
``events`` has had none for a second, a tick is appended. Its time is that of the newest record and what has
passed since that came: for live events this is now, and where a past is being written, or was when everything
stood still, event time goes on from there instead of jumping. Where a partition never had any event, no
window waits, and it isn't ticked.

One process of a system ticks, the part of the sequencer; two would do no harm, since time only goes forward.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from recsys.events.event_types import Rejected, Tick, decode, encode
from recsys.events.records import EVENTS
from recsys.log.protocol import Append, Log, newest_first

EVERY_MS: Final = 1_000
_BACK: Final = 1_000  # records read backwards at the most


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

    def since(self, partition: int, now_ms: int) -> int:
        """Milliseconds since the partition last moved."""
        return now_ms - self._moved[partition][1]

    def appended(self, partition: int, end: int, now_ms: int) -> None:
        """The partition ends there now: known at once, so that no time is lost until the next look."""
        self._moved[partition] = (end, now_ms)


class Ticker:
    """Appends a tick to each partition of ``events`` that is idle. ``turn`` is cheap to call often."""

    def __init__(self, log: Log, clock: Callable[[], int], every_ms: int = EVERY_MS) -> None:
        """``clock``: milliseconds; no tick is later than that."""
        self._log, self._clock = log, clock
        self._idle = Idle(every_ms)
        self._partitions = log.partitions(EVENTS)
        self._look_ms = 0  # when the ends are looked at next

    def turn(self) -> int:
        """Returns how many ticks it appended."""
        now_ms = self._clock()
        if now_ms < self._look_ms:
            return 0
        self._look_ms = now_ms + self._idle.every_ms // 4
        ends = [self._log.end(EVENTS, partition) for partition in range(self._partitions)]
        ticks = []
        for partition in self._idle.due(ends, now_ms):
            newest_ms = self._newest_ms(partition, ends[partition])
            if newest_ms is not None:
                time_ms = min(now_ms, newest_ms + self._idle.since(partition, now_ms))
                ticks.append(Append(partition, b"", encode(Tick(time_ms=time_ms))))
        if ticks:
            offsets = self._log.append(EVENTS, ticks)
            for tick, offset in zip(ticks, offsets, strict=True):
                self._idle.appended(tick.partition, offset + 1, now_ms)
        return len(ticks)

    def _newest_ms(self, partition: int, end: int) -> int | None:
        """The time of the newest record; None where there is none, or none that can be read."""
        for record in islice(newest_first(self._log, EVENTS, partition, stop=end), _BACK):
            with suppress(Rejected):
                return decode(record.value).time_ms
        return None
