"""Reader of one Kafka topic for one thread, from any offset to the end.

An empty read means the end, for which it asks the broker. Sequential reads need no seek; records fetched
ahead are buffered.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from recsys.log.kafka_client import Buffer, consumer_of, unavailable
from recsys.log.protocol import LogUnavailable, Record, check_range

FETCH_WAIT_MS: Final = 25  # a newly added or sought partition waits for the fetch in flight
# Beginnings or ends of all partitions are requested together; own appends invalidate the ends.
FRESH_S: Final = 0.02
# Limits of a partition's buffer; beyond them nothing more is fetched.
BUFFERED: Final = 10_000
BUFFERED_BYTES: Final = 4 << 20

# (topic, partitions, begins or ends) → offset by partition, on a separate connection: on this one the request
# would wait behind the fetch in flight.
Listed = Callable[[str, list[int], bool], dict[int, int]]


class KafkaReader:
    """Reads one topic in one thread, from any offset; sequential reads are fast."""

    def __init__(self, connection: Mapping[str, Any], topic: str, patience_s: float, listed: Listed) -> None:
        self._topic, self._patience_s, self._listed = topic, patience_s, listed
        self._next: dict[int, int] = {}  # offset of a partition's next sequential read
        self._buffers: dict[int, Buffer] = {}
        # Beginnings (True) and ends (False) by partition, and when they were requested.
        self._bounds: dict[bool, dict[int, int]] = {True: {}, False: {}}
        self._bounds_at = {True: 0.0, False: 0.0}
        self._active: set[int] = set()  # assigned and fetched
        self._consumer = consumer_of(connection, fetch_max_wait_ms=FETCH_WAIT_MS)

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        """Raises LogLost outside the broker's records, LogUnavailable if it doesn't answer."""
        sought, began_s = self._place(partition, offset), time.monotonic()
        if not self._buffers[partition]:
            # A sequential read mostly gets its records from the open fetch, and asks for no end.
            self._poll(0 if sought else FETCH_WAIT_MS, partition)
        if not self._buffers[partition]:
            end = self.end(partition)
            if end < offset or (end == offset and self._bounds_at[False] < began_s):
                self.forget_ends()  # records may have come since
                end = self.end(partition)
            if end < offset or (sought and end > offset):
                check_range(self._topic, partition, offset, self.begin(partition), end)
            if end > offset:
                self._fetch(partition, offset)
        return self._take(partition, limit)

    def begin(self, partition: int) -> int:
        """The beginning, of at most FRESH_S ago."""
        return self._bound(partition, begins=True)

    def end(self, partition: int) -> int:
        """The end, of at most FRESH_S ago."""
        return self._bound(partition, begins=False)

    def wait(self, timeout_s: float) -> None:
        """Waits until the broker sends a record of a partition that this thread reads."""
        if not self._next:
            time.sleep(min(timeout_s, 0.01))
        elif not any(self._buffers.values()):
            self._poll(int(timeout_s * 1000), *self._next)

    def leave(self, partition: int) -> None:
        """Stops fetching a partition until its next read."""
        self._deactivate({partition})
        self._next.pop(partition, None)
        self._buffers.pop(partition, None)

    def forget_ends(self) -> None:
        """Invalidates the known ends after an append."""
        self._bounds_at[False] = 0.0

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=1_000)

    def _place(self, partition: int, offset: int) -> bool:
        """Positions the next read at ``offset``; True unless the last read ended there."""
        if self._next.get(partition) == offset:
            return False
        self._next[partition] = offset
        self._buffers[partition] = Buffer()
        self._deactivate({partition})
        return True

    def _poll(self, timeout_ms: int, *partitions: int) -> None:
        """Buffers fetched records of these partitions and of others with room."""
        # Unassigned instead of paused: a resumed partition may get no records (kafka-python 3.0.12 puts its
        # current batch aside and doesn't resume it).
        full = {p for p, b in self._buffers.items() if b.is_full(BUFFERED, BUFFERED_BYTES)}
        self._deactivate(full - {*partitions})
        new = set(partitions) - self._active
        if new:
            self._active |= new
            self._assign()
            for partition in new:
                buffer = self._buffers[partition]
                position = buffer.last.offset + 1 if buffer else self._next[partition]
                self._consumer.seek(TopicPartition(self._topic, partition), position)
        try:
            polled = self._consumer.poll(timeout_ms)
        except OffsetOutOfRangeError:
            return  # read() finds out which partition, and raises
        except KafkaError as error:
            raise unavailable(self._topic, error) from error
        for at, records in polled.items():
            self._buffers[at.partition].put(records)

    def _deactivate(self, partitions: set[int]) -> None:
        if partitions & self._active:
            self._active -= partitions
            self._assign()

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, p) for p in sorted(self._active)])

    def _bound(self, partition: int, begins: bool) -> int:
        now, bounds = time.monotonic(), self._bounds[begins]
        if now - self._bounds_at[begins] > FRESH_S or partition not in bounds:
            partitions = sorted({*self._next, *bounds, partition})
            bounds = self._bounds[begins] = self._listed(self._topic, partitions, begins)
            self._bounds_at[begins] = now
        return bounds[partition]

    def _fetch(self, partition: int, offset: int) -> None:
        """Waits for records at or after the offset, which exist."""
        deadline = time.monotonic() + self._patience_s
        while not self._buffers[partition]:
            self._poll(100, partition)
            if time.monotonic() > deadline:
                check_range(self._topic, partition, offset, self.begin(partition), offset)
                raise LogUnavailable(
                    f"{self._topic}/{partition}: the broker sent no record at offset {offset} for "
                    f"{self._patience_s:.0f} s, although there is one: see its messages"
                )

    def _take(self, partition: int, limit: int) -> list[Record]:
        taken = self._buffers[partition].take(limit)
        if taken:
            self._next[partition] = taken[-1].offset + 1
        return taken
