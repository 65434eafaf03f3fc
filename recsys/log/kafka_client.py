"""How this project's Kafka clients are made, and how a broker's failures are told."""

import importlib.util
from collections import deque
from typing import Any, Final

from kafka import KafkaConsumer, KafkaProducer
from kafka.net.compat import KafkaNetClient

from recsys.log.protocol import LogUnavailable, Record

FETCH_BYTES: Final = 1 << 20  # of a partition at once; a larger record comes alone


def consumer_of(servers: list[str], patience_s: float, fetch_max_wait_ms: int) -> KafkaConsumer:
    """A consumer that is assigned and sought, and never joins a group: where a fold stands is part of its
    state, not of the broker's. Raises KafkaError where no broker answers."""
    return KafkaConsumer(
        bootstrap_servers=servers,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        kafka_client=creating_nothing,
        fetch_max_wait_ms=fetch_max_wait_ms,
        max_partition_fetch_bytes=FETCH_BYTES,
        max_poll_records=2_000,
        request_timeout_ms=int(patience_s * 1000),
        bootstrap_timeout_ms=int(patience_s * 1000),
        reconnect_backoff_max_ms=1_000,
        metrics_enabled=False,
        # In pure Python the check costs eight times the rest of a read; TCP checks the way here.
        check_crcs=importlib.util.find_spec("crc32c") is not None,
    )


class Producer:
    """A KafkaProducer that waits for all acknowledgements and repeats nothing by its own retries.

    It is told each topic before the first record of it. kafka-python 3.0.12 knows all topics from its start
    and, when it asks for a new one, forgets those that it wasn't told. If it had sent to one of them, it then
    asks for that one's leader in an endless loop that takes a whole core.
    """

    def __init__(self, servers: list[str], patience_s: float, max_record_bytes: int) -> None:
        """Raises KafkaError where no broker answers."""
        self._told: set[str] = set()
        patience_ms = int(patience_s * 1000)
        self._producer = KafkaProducer(
            bootstrap_servers=servers,
            acks="all",
            enable_idempotence=True,
            delivery_timeout_ms=patience_ms,
            request_timeout_ms=patience_ms // 3,
            max_block_ms=patience_ms,
            bootstrap_timeout_ms=patience_ms,
            reconnect_backoff_max_ms=1_000,
            kafka_client=self._client_of,
            batch_size=256 << 10,
            max_request_size=max_record_bytes + (1 << 20),
            metrics_enabled=False,
        )

    def send(self, topic: str, partition: int, key: bytes, value: bytes) -> Any:
        """A future of the record's metadata, of which ``offset`` is one. Raises KafkaError."""
        if topic not in self._told:
            self._client.cluster.add_topic(topic)
            self._told.add(topic)
        return self._producer.send(topic, value, key, partition=partition)

    def close(self, timeout_s: float) -> None:
        self._producer.close(timeout=timeout_s)

    def _client_of(self, **configs: Any) -> Any:
        self._client = creating_nothing(**configs)
        return self._client


def creating_nothing(**configs: Any) -> Any:
    """A client whose questions create no topic. kafka-python 3.0.12 loses ``allow_auto_create_topics``, and
    clients that lived through the loss of a broker's memory made its topics anew, with any partitions."""
    client = KafkaNetClient(**configs)
    client.cluster.config["allow_auto_create_topics"] = False
    return client


def unavailable(what: str, error: BaseException) -> LogUnavailable:
    """The error for a broker that doesn't answer or refuses."""
    return LogUnavailable(
        f"{what}: Kafka doesn't do it: {type(error).__name__}: {error}. See that the broker of log.url runs "
        "and answers"
    )


class Buffer:
    """Records in order, with their bytes counted as they come and go."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def last(self) -> Record:
        return self._records[-1]

    def put(self, record: Record) -> None:
        self._records.append(record)
        self._bytes += len(record.value)

    def take(self, limit: int) -> list[Record]:
        """The first records, at most ``limit``."""
        taken = [self._records.popleft() for _ in range(min(limit, len(self._records)))]
        self._bytes -= sum(len(record.value) for record in taken)
        return taken

    def is_full(self, records: int, size: int) -> bool:
        """Whether so many records or bytes wait."""
        return len(self._records) >= records or self._bytes >= size
