"""One thread's reading of one Kafka topic from anywhere: from an offset that it seeks to the end.

A read says whether there is nothing more, and asks the broker for the end to know it. Reads that go on from
each other cost no seek; what the broker sent ahead waits in a buffer.
"""

import time
from collections.abc import Callable
from typing import Final

from kafka import TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from recsys.log.kafka_client import Buffer, consumer_of, unavailable
from recsys.log.protocol import LogUnavailable, Record, check_range

FETCH_WAIT_MS: Final = 25  # a partition added or sought waits for the fetch in flight: not long
ENDS_FRESH_S: Final = 0.02  # one request tells the ends of all partitions; own appends ask anew
# Records and bytes of a partition that wait here; then no more are fetched.
BUFFERED: Final = 10_000
BUFFERED_BYTES: Final = 4 << 20

# (topic, partitions, begins or ends) → offset by partition, asked on a connection of its own: on this one the
# question would wait behind the fetch in flight.
Listed = Callable[[str, list[int], bool], dict[int, int]]


class KafkaReader:
    """Reads one topic in one thread. ``offset`` may be any; going on from the last read is the quick way."""

    def __init__(self, servers: list[str], topic: str, patience_s: float, listed: Listed) -> None:
        self._topic, self._patience_s, self._listed = topic, patience_s, listed
        self._next: dict[int, int] = {}  # what the next sequential read of a partition asks for
        self._buffers: dict[int, Buffer] = {}
        self._ends: dict[int, int] = {}
        self._ends_at = 0.0
        self._probed: dict[int, int] = {}
        self._told: dict[int, tuple[int, int]] = {}  # as listed, and the end that was found then
        self._active: set[int] = set()  # assigned: being fetched
        self._consumer = consumer_of(servers, patience_s, fetch_max_wait_ms=FETCH_WAIT_MS)

    def read(self, partition: int, offset: int, limit: int) -> list[Record]:
        """Raises LogLost outside of what the broker has, LogUnavailable where it doesn't answer."""
        sought = self._place(partition, offset)
        if not self._buffers[partition]:
            self._poll(0, partition)
        if not self._buffers[partition]:
            listed = self._listed_end(partition)
            if listed > offset:
                self._fetch(partition, offset)
            elif sought or (listed < offset and listed != self._probed.get(partition)):
                # Inside of the last batch, at the end, or beyond it: see bounds().
                begin, end = self.bounds(partition)
                check_range(self._topic, partition, offset, begin, end)
                self._probed[partition] = listed
                if offset < end:
                    self._fetch(partition, offset)
        return self._take(partition, limit)

    def begin(self, partition: int) -> int:
        return self._listed(self._topic, [partition], True)[partition]

    def end(self, partition: int) -> int:
        """One question, for all partitions whose end is asked for, where nothing was appended to this one."""
        listed = self._listed_end(partition)
        told = self._told.get(partition)
        if told is None or told[0] != listed:
            told = self._told[partition] = listed, self.bounds(partition)[1]
        return told[1]

    def bounds(self, partition: int) -> tuple[int, int]:
        """(begin, end), asked of the broker now. The end is the high watermark that comes with the last
        batch: the embedded broker lists as the end the offset after the *first* record of that batch."""
        at = TopicPartition(self._topic, partition)
        begin = self.begin(partition)
        self._ends_at = 0.0
        listed = self._listed_end(partition)
        if listed <= begin:
            return begin, begin
        before, kept = self._next.get(partition), self._buffers.get(partition, Buffer())
        self._buffers[partition], self._next[partition] = Buffer(), listed - 1
        self._deactivate({partition})
        self._fetch(partition, listed - 1)
        end: int = self._consumer.highwater(at)
        self._deactivate({partition})
        del self._buffers[partition], self._next[partition]
        if before is not None:
            self._buffers[partition], self._next[partition] = kept, before
        return begin, end

    def wait(self, timeout_s: float) -> None:
        """Until the broker sends something of what this thread reads."""
        if not self._next:
            time.sleep(min(timeout_s, 0.01))
        elif not any(self._buffers.values()):
            self._poll(int(timeout_s * 1000), *self._next)

    def leave(self, partition: int) -> None:
        """Reads no further here, until the next read."""
        self._deactivate({partition})
        self._next.pop(partition, None)
        self._buffers.pop(partition, None)

    def forget_ends(self) -> None:
        """Something was appended: the known ends are old."""
        self._ends_at = 0.0

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=1_000)

    def _place(self, partition: int, offset: int) -> bool:
        """Makes ``offset`` what comes next; True where that isn't where the last read ended."""
        if self._next.get(partition) == offset:
            return False
        self._next[partition] = offset
        self._buffers[partition] = Buffer()
        self._deactivate({partition})
        return True

    def _poll(self, timeout_ms: int, *partitions: int) -> None:
        """Takes what the broker sent, of these partitions and of others that still have room."""
        # Unassigned, not paused: a partition paused and resumed may get nothing more (kafka-python 3.0.12
        # puts the batch that it had at hand aside, and doesn't take it up again).
        self._deactivate(
            {p for p, b in self._buffers.items() if b.is_full(BUFFERED, BUFFERED_BYTES)}
            - {*partitions}
        )
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
            return  # read() finds out which, and says so
        except KafkaError as error:
            raise unavailable(self._topic, error) from error
        for at, found in polled.items():
            buffer = self._buffers[at.partition]
            for r in found:
                buffer.put(Record(r.offset, r.key or b"", r.value or b""))

    def _deactivate(self, partitions: set[int]) -> None:
        if partitions & self._active:
            self._active -= partitions
            self._assign()

    def _assign(self) -> None:
        self._consumer.assign([TopicPartition(self._topic, p) for p in sorted(self._active)])

    def _listed_end(self, partition: int) -> int:
        """What the broker listed as the end, at most ENDS_FRESH_S ago."""
        now = time.monotonic()
        if now - self._ends_at > ENDS_FRESH_S or partition not in self._ends:
            self._ends = self._listed(
                self._topic, sorted({*self._next, *self._ends, partition}), False
            )
            self._ends_at = now
        return self._ends[partition]

    def _fetch(self, partition: int, offset: int) -> None:
        """There is something at or after the offset: waits for it to come."""
        deadline = time.monotonic() + self._patience_s
        while not self._buffers[partition]:
            self._poll(100, partition)
            if time.monotonic() > deadline:
                check_range(self._topic, partition, offset, self.begin(partition), offset)
                raise LogUnavailable(
                    f"{self._topic}/{partition}: the broker gave nothing at offset {offset} for "
                    f"{self._patience_s:.0f} s, although there is something: see its messages"
                )

    def _take(self, partition: int, limit: int) -> list[Record]:
        taken = self._buffers[partition].take(limit)
        if taken:
            self._next[partition] = taken[-1].offset + 1
        return taken
