"""Kafka clients with this project's settings, a buffer for fetched records, and the error of a failing
broker."""

import importlib.util
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import LogTruncationError
from kafka.net.compat import KafkaNetClient

from recsys.log.kafka_fetch import PartitionRecords
from recsys.log.protocol import Brokers, LogLost, LogUnavailable, Record

FETCH_BYTES: Final = 1 << 20  # per partition and fetch; a larger record comes alone


def consumer_of(connection: Mapping[str, Any], fetch_max_wait_ms: int) -> KafkaConsumer:
    """A consumer with manual assignment and no group: a fold's offsets are part of its own state, not the
    broker's. Raises KafkaError if no broker answers."""
    consumer = KafkaConsumer(
        **connection,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        kafka_client=_client_without_topic_creation,
        fetch_max_wait_ms=fetch_max_wait_ms,
        max_partition_fetch_bytes=FETCH_BYTES,
        max_poll_records=2_000,
        metrics_enabled=False,
        # In pure Python the check costs eight times the rest of a read; TCP has checksums of its own.
        check_crcs=importlib.util.find_spec("crc32c") is not None,
    )
    consumer._fetcher.PartitionRecords = PartitionRecords
    return consumer


class Producer:
    """An idempotent KafkaProducer that waits for all acknowledgements.

    It registers each topic before the first record. kafka-python 3.0.12 knows all topics after its start and,
    when it looks up a new one, forgets unregistered topics. If it had sent to one of them, it then looks up
    that topic's leader in an endless loop that takes a whole core.
    """

    def __init__(self, connection: Mapping[str, Any], config: Brokers, max_record_bytes: int) -> None:
        """Raises KafkaError if no broker answers."""
        self._registered: set[str] = set()
        patience_ms = connection["request_timeout_ms"]
        self._producer = KafkaProducer(
            **{**connection, "request_timeout_ms": patience_ms // 3}, acks="all", enable_idempotence=True,
            delivery_timeout_ms=patience_ms, max_block_ms=patience_ms, kafka_client=self._client_of,
            batch_size=256 << 10,
            compression_type=None if config.compression == "none" else config.compression,
            max_request_size=max_record_bytes + (1 << 20), metrics_enabled=False,
        )  # fmt: skip

    def send(self, topic: str, partition: int, key: bytes, value: bytes) -> Any:
        """Returns a future of the record's metadata, including ``offset``. Raises KafkaError."""
        if topic not in self._registered:
            self._client.cluster.add_topic(topic)
            self._registered.add(topic)
        return self._producer.send(topic, value, key, partition=partition)

    def close(self, timeout_s: float) -> None:
        self._producer.close(timeout=timeout_s)

    def _client_of(self, **configs: Any) -> Any:
        self._client = _client_without_topic_creation(**configs)
        return self._client


def _client_without_topic_creation(**configs: Any) -> Any:
    """A client whose lookups create no topic. kafka-python 3.0.12 loses ``allow_auto_create_topics``: clients
    that survived a broker's loss of memory recreated its topics, with any number of partitions."""
    client = KafkaNetClient(**configs)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


class LogTruncated(LogLost):
    """A reader has records that the brokers lost: kafka-python says so once, and goes on with others."""


def unavailable(what: str, error: BaseException) -> LogUnavailable | LogTruncated:
    """The error for a broker that doesn't answer, refuses, or has lost records."""
    if isinstance(error, LogTruncationError):
        return LogTruncated(
            f"{what}: the brokers have lost records that were read already ({error}): what was made of them "
            "can't go on. Start again from a backup, or in another state folder"
        )
    return LogUnavailable(
        f"{what}: Kafka failed: {type(error).__name__}: {error}. See that the broker of log.url runs "
        "and answers, and that log.tls and log.user fit it; changed files are read at the next start"
    )


class Buffer:
    """Fetched records of a partition in order, with a count of their bytes."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def last(self) -> Record:
        return self._records[-1]

    def put(self, records: Sequence[Record]) -> None:
        self._records.extend(records)
        self._bytes += sum(len(record.value) for record in records)

    def take(self, limit: int) -> list[Record]:
        """The first records, at most ``limit``."""
        taken = [self._records.popleft() for _ in range(min(limit, len(self._records)))]
        self._bytes -= sum(len(record.value) for record in taken)
        return taken

    def is_full(self, records: int, size: int) -> bool:
        """Whether the buffer has reached ``records`` records or ``size`` bytes."""
        return len(self._records) >= records or self._bytes >= size
