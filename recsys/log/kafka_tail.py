"""What one thread follows: the ends of its partitions, of all topics, in one consumer.

Most reads of a system that keeps up find nothing, or what came a moment ago. Here one fetch stands open at
the broker for all partitions that the thread has read to their end, and a read of them asks nothing: it takes
what that fetch brought. Catching up, seeking and finding out what was lost are ``recsys.log.kafka_reader``'s.
"""

import time
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from recsys.log.kafka_client import Buffer, consumer_of, unavailable
from recsys.log.protocol import Record

# How long a fetch stays open. The embedded broker sometimes answers only when half of it has passed; and a
# partition that is newly followed waits for the end of the fetch that stands open.
OPEN_MS: Final = 100
# Between two polls: a fetch that brings one record costs as much as one that brings many.
PACE_S: Final = 0.02
# Records and bytes of a partition that wait here; then it is let go.
BUFFERED: Final = 10_000
BUFFERED_BYTES: Final = 32 << 20


class _Followed:
    """One partition: what came of it, and the offset after that."""

    def __init__(self, offset: int) -> None:
        self.next = offset  # of the next read
        self.position = offset  # after what is in the buffer
        self.buffer = Buffer()

    def put(self, record: Record) -> None:
        self.buffer.put(record)
        self.position = record.offset + 1

    def take(self, limit: int) -> list[Record]:
        taken = self.buffer.take(limit)
        if taken:
            self.next = taken[-1].offset + 1
        return taken

    @property
    def full(self) -> bool:
        return self.buffer.is_full(BUFFERED, BUFFERED_BYTES)


class KafkaTail:
    """Used by one thread. A partition is followed from an offset at which there was nothing yet."""

    def __init__(self, servers: list[str], patience_s: float) -> None:
        self._consumer: KafkaConsumer = consumer_of(servers, patience_s, fetch_max_wait_ms=OPEN_MS)
        self._followed: dict[TopicPartition, _Followed] = {}
        self._assigned: set[TopicPartition] = set()
        self._polled_at = 0.0

    def follow(self, topic: str, partition: int, offset: int) -> None:
        """From now on ``read`` answers for this partition, beginning with this offset."""
        self._followed[TopicPartition(topic, partition)] = _Followed(offset)
        self._assign(seek=TopicPartition(topic, partition))

    def leave(self, topic: str, partition: int) -> None:
        """Forgets a partition; does nothing where it isn't followed."""
        if self._followed.pop(TopicPartition(topic, partition), None) is not None:
            self._assign()

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record] | None:
        """What came at and after ``offset``; empty while there is nothing. None where it doesn't know: the
        partition isn't followed, or not from there."""
        at = TopicPartition(topic, partition)
        there = self._followed.get(at)
        if there is None or there.next != offset:
            return None
        if not there.buffer and at in self._assigned and self._pace() <= 0:
            self._poll(0)
            there = self._followed.get(at)
            if there is None:
                return None
        if not there.buffer and at not in self._assigned:
            # It was let go, and all that had come is read: the reader catches up.
            del self._followed[at]
            return None
        return there.take(limit)

    def end(self, topic: str, partition: int) -> int | None:
        """The end as the last answer of the broker told it. None where the partition isn't followed."""
        at = TopicPartition(topic, partition)
        if at not in self._assigned:
            return None
        told: int | None = self._consumer.highwater(at)
        return max(told or 0, self._followed[at].position)

    def wait(self, topic: str, timeout_s: float) -> bool:
        """Until something of what is followed came, or the timeout. False, at once, where nothing of the
        topic is followed."""
        mine = [there for at, there in self._followed.items() if at.topic == topic]
        if not mine:
            return False
        if not any(there.buffer for there in mine):
            rest = min(timeout_s, max(0.0, self._pace()))
            time.sleep(rest)
            self._poll(int((timeout_s - rest) * 1000))
        return True

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=1_000)

    def _pace(self) -> float:
        """Seconds until the next poll."""
        return self._polled_at + PACE_S - time.monotonic()

    def _poll(self, timeout_ms: int) -> None:
        if not self._assigned:
            return
        try:
            polled = self._consumer.poll(timeout_ms)
        except OffsetOutOfRangeError:  # of one of them: the reader finds out which, and says so
            self._followed.clear()
            return self._assign()
        except KafkaError as error:
            raise unavailable(
                ", ".join(sorted({at.topic for at in self._assigned})), error
            ) from error
        finally:
            self._polled_at = time.monotonic()
        for at, records in polled.items():
            there = self._followed.get(at)
            for r in records if there is not None else ():
                if r.offset >= there.position:
                    there.put(Record(r.offset, r.key or b"", r.value or b""))
        if any(self._followed[at].full for at in self._assigned):
            self._assign()

    def _assign(self, seek: TopicPartition | None = None) -> None:
        """Fetches what is followed and has room. What was let go comes back through ``follow`` only."""
        kept = {at for at in self._assigned if at in self._followed and not self._followed[at].full}
        self._assigned = kept | ({seek} if seek else set())
        self._consumer.assign(sorted(self._assigned))
        if seek is not None:
            self._consumer.seek(seek, self._followed[seek].position)
