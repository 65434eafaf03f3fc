"""Follows the ends of partitions of all topics for one thread, in one consumer.

Most reads of a system that keeps up find nothing or a recent record. For all partitions that the thread has
read to the end, one fetch stays open at the broker, and a read takes its records without a request.
``recsys.log.kafka_reader`` catches up, seeks and detects lost records.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from recsys.log.kafka_client import Buffer, consumer_of, unavailable
from recsys.log.protocol import Record

# Maximal wait of a fetch. The embedded broker sometimes answers only after half of it; a newly followed
# partition waits for the end of the open fetch.
OPEN_MS: Final = 100
# The same while records arrive, for as long after the newest as RECENT_S.
BUSY_MS: Final = 20
RECENT_S: Final = 0.25
# Pause between polls: a fetch of one record costs as much as one of many.
PACE_S: Final = 0.02
# After so long without a poll the broker's last answer isn't the end, and the reader asks for that.
STALE_S: Final = 1.0
# Wait for the records after those of an old fetch.
NEWER_MS: Final = 5
# Limits of a partition's buffer; beyond them it is no longer followed.
BUFFERED: Final = 10_000
BUFFERED_BYTES: Final = 32 << 20


class _Followed(Buffer):
    """Buffer and position of one followed partition."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.since_s = time.monotonic()  # when ``offset`` was the end
        self.next = offset  # of the next read
        self.position = offset  # after the buffered records

    def put(self, records: Sequence[Record]) -> None:
        super().put(records)
        self.position = records[-1].offset + 1

    def take(self, limit: int) -> list[Record]:
        taken = super().take(limit)
        if taken:
            self.next = taken[-1].offset + 1
        return taken


class KafkaTail:
    """For one thread. A partition is followed from an offset at its end."""

    def __init__(self, connection: Mapping[str, Any]) -> None:
        self._consumer: KafkaConsumer = consumer_of(connection, fetch_max_wait_ms=OPEN_MS)
        self._followed: dict[TopicPartition, _Followed] = {}
        self._assigned: set[TopicPartition] = set()
        self._polled_at = self._received_at = 0.0
        self._is_empty = False  # whether the last poll brought no record

    def follow(self, topic: str, partition: int, offset: int) -> None:
        """Follows a partition from this offset on; ``read`` then returns its records."""
        self._followed[TopicPartition(topic, partition)] = _Followed(offset)
        self._assign(seek=TopicPartition(topic, partition))

    def leave(self, topic: str, partition: int) -> None:
        """Stops following a partition, if it is followed."""
        if self._followed.pop(TopicPartition(topic, partition), None) is not None:
            self._assign()

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record] | None:
        """New records from ``offset`` on; None if the partition isn't followed from there."""
        at = TopicPartition(topic, partition)
        followed = self._followed.get(at)
        if followed is None or followed.next != offset:
            return None
        fresh_s = max(self._polled_at, followed.since_s)
        if not followed and time.monotonic() - fresh_s > STALE_S:
            self.leave(topic, partition)
            return None
        if not followed and at in self._assigned and self._pace() <= 0:
            self._poll(0)
            followed = self._followed.get(at)
            if followed is None:
                return None
        if not followed and at not in self._assigned:
            # Unassigned with a full buffer that is read by now: the reader catches up.
            del self._followed[at]
            return None
        return followed.take(limit)

    def end(self, topic: str, partition: int) -> int | None:
        """The end according to the broker's last answer. None if the partition isn't followed."""
        at = TopicPartition(topic, partition)
        if at not in self._assigned:
            return None
        highwater: int | None = self._consumer.highwater(at)
        return max(highwater or 0, self._followed[at].position)

    def wait(self, topic: str, timeout_s: float) -> bool:
        """Waits for a record or the timeout; False, at once, if the topic is not followed."""
        of_topic = [followed for at, followed in self._followed.items() if at.topic == topic]
        if not of_topic:
            return False
        if not any(of_topic):
            # With several brokers the fetch of one that has nothing is open at almost any time.
            is_sent = self._is_empty and self._is_sent()
            rest = 0.0 if is_sent else min(timeout_s, max(0.0, self._pace()))
            time.sleep(rest)
            self._poll(int((timeout_s - rest) * 1000))
        return True

    def close(self) -> None:
        self._consumer.close(autocommit=False, timeout_ms=1_000)

    def _pace(self) -> float:
        """Seconds until the next poll."""
        return self._polled_at + PACE_S - time.monotonic()

    def _is_sent(self) -> bool:
        """Whether a fetch is at the broker, or answered and not read."""
        fetcher = self._consumer._fetcher
        return bool(fetcher._completed_fetches) or fetcher.in_flight_fetches()

    def _poll(self, timeout_ms: int) -> None:
        if not self._assigned:
            return None
        recent = time.monotonic() - self._received_at < RECENT_S
        self._consumer._fetcher.config["fetch_max_wait_ms"] = BUSY_MS if recent else OPEN_MS
        # A poll that returns records of an earlier fetch has sent the next one. Left to the next poll, its
        # answer would be a pause old, and that poll would send the next one again.
        is_old = bool(self._consumer._fetcher._completed_fetches)
        try:
            polled = self._consumer.poll(timeout_ms)
            self._is_empty = not polled
            self._put(polled)
            if is_old and polled:
                self._put(self._consumer.poll(NEWER_MS))
        except OffsetOutOfRangeError:  # the reader finds out which partition, and raises
            self._followed.clear()
            return self._assign()
        except KafkaError as error:
            topics = ", ".join(sorted({at.topic for at in self._assigned}))
            raise unavailable(topics, error) from error
        finally:
            self._polled_at = time.monotonic()
        if any(self._followed[at].is_full(BUFFERED, BUFFERED_BYTES) for at in self._assigned):
            self._assign()

    def _put(self, polled: Mapping[TopicPartition, Sequence[Record]]) -> None:
        """Buffers records that a poll has returned."""
        if polled:
            self._received_at = time.monotonic()
        for at, records in polled.items():
            followed = self._followed.get(at)
            if followed is None:
                continue
            new = [record for record in records if record.offset >= followed.position]
            if new:
                followed.put(new)

    def _assign(self, seek: TopicPartition | None = None) -> None:
        """Assigns followed partitions with room. A dropped partition comes back only through ``follow``."""
        room = {
            at
            for at in self._assigned
            if at in self._followed and not self._followed[at].is_full(BUFFERED, BUFFERED_BYTES)
        }
        self._assigned = room | ({seek} if seek else set())
        self._consumer.assign(sorted(self._assigned))
        if seek is not None:
            self._consumer.seek(seek, self._followed[seek].position)
