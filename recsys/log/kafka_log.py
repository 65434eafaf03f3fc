"""The log on Kafka or a compatible broker, through kafka-python.

The log's id is the first record of the topic ``__recsys_log_id``: a broker that lost its data has another id,
and clients that continue from the old one get LogLost. The broker's retention drops records, by time and
bytes; there are no holds. Transactions and groups aren't used: state carries its offsets.
"""

import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from recsys.log import protocol
from recsys.log.kafka_client import LogTruncated, Producer, unavailable
from recsys.log.kafka_connection import connection_of
from recsys.log.kafka_fetch import fetch_each
from recsys.log.kafka_reader import KafkaReader
from recsys.log.kafka_tail import KafkaTail
from recsys.log.kafka_topics import MAX_RECORD_BYTES, KafkaTopics
from recsys.log.protocol import Append, Brokers, Log, LogLost, LogUnavailable, LogUnchangeable, Record, Topic

C = TypeVar("C", KafkaReader, KafkaTail)
ID_TOPIC: Final = "__recsys_log_id"
_FRAME_BYTES: Final = 1 << 10  # maximal overhead of the batch around a record
CHECK_S: Final = 1.0  # interval of checks for a broker that restarted empty
OWN_S: Final = 0.1  # wait for this client's own appends in its tail, before seeking them


class KafkaLog(Log):
    """The log on the brokers of ``url`` (``kafka://host:port[,host:port]``).

    A partition that a thread has read to its end is followed from then on: reads return the records that have
    arrived (``recsys.log.kafka_tail``), and may miss those that *another* client appended in the last few
    hundredths of a second. This client's own appends are always included.

    An append waits for all acknowledgements. Retries within one producer make no repeats (idempotence). After
    it gives up, at ``patience_s``, the records may have been committed or not, and appending them again may
    repeat them: consumers drop repeats by event id or source.
    """

    def __init__(self, config: Brokers | str, *, patience_s: float = 15.0) -> None:
        """``config``: the section ``log``, or its URL alone."""
        config = Brokers(config) if isinstance(config, str) else config
        self._config, self._url, self._patience_s = config, config.url, patience_s
        self._connection = connection_of(config, patience_s)
        self._lock = threading.RLock()
        self._local = threading.local()
        self._clients: list[tuple[threading.Thread, KafkaReader | KafkaTail]] = []
        # End of this client's own appends, by topic and partition.
        self._appended: dict[tuple[str, int], int] = {}
        self._producer: Producer | None = None
        self._partitions: dict[str, int] = {}
        self._appends = 0
        self._id, self._checked = "", 0.0  # no checks until the id is known
        self._absent_since = 0.0  # when the broker stopped knowing the id's topic
        self._truncated: LogTruncated | None = None  # is raised by each later call
        try:
            self._admin = KafkaAdminClient(**self._connection)
        except KafkaError as error:
            raise unavailable(self._url, error) from error
        self._topics = KafkaTopics(self._admin, config, patience_s)
        try:
            self._id = self._read_or_make_id()
            self._incarnation = self._topic_id()
        except BaseException:
            self.close()
            raise

    def _read_or_make_id(self) -> str:
        if self._described(ID_TOPIC) is None:  # else the controller needn't be asked
            self._topics.make(Topic(ID_TOPIC))
        if (log_id := self._first_id()) is None:
            # Two clients may race here: the first record counts, for both.
            self.append(ID_TOPIC, [Append(0, b"", uuid.uuid4().hex.encode())])
            log_id = self._first_id()
        if log_id is None:
            raise LogUnavailable(f"{self._url}: the log's id was written and can't be read back")
        return log_id

    @property
    def id(self) -> str:
        return self._id

    def create(self, topic: Topic) -> None:
        self._topics.make(topic)
        self._partitions.pop(topic.name, None)
        protocol.check_partitions(topic, self.partitions(topic.name))

    def partitions(self, topic: str) -> int:
        if topic not in self._partitions:
            if (description := self._described(topic)) is None:
                raise self._no_topic(topic)
            self._partitions[topic] = len(description["partitions"])
        return self._partitions[topic]

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        most_bytes, name = MAX_RECORD_BYTES - _FRAME_BYTES, self._config.prefix + topic
        protocol.check_appends(topic, self.partitions(topic), records, most_bytes)
        self._check_id()
        producer = self._producing()
        futures: list[Any] = []
        try:
            for partition, key, value in records:
                futures.append(producer.send(name, partition, key, value))
            offsets = [future.get(self._patience_s * 2).offset for future in futures]
        except KafkaError as error:
            self._give_up(producer)
            self._forget_ends(name, {record[0] for record in records})
            self._check_id(now=True)
            done = sum(future.succeeded() for future in futures)
            raise LogUnavailable(
                f"{topic}: {done} of {len(records)} records were acknowledged, any of the others may have "
                f"been committed: {type(error).__name__}: {error}. See that the broker at {self._url} runs; "
                "appending again may repeat records, which consumers drop"
            ) from error
        with self._lock:
            for record, offset in zip(records, offsets, strict=True):
                at = (name, record[0])
                self._appended[at] = max(offset + 1, self._appended.get(at, 0))
            self._appends += 1
        self._check_id()
        return offsets

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        name = self._check(topic, partition)
        tail = self._tail()
        with self._keeps_truncation():
            records = tail.read(name, partition, offset, limit)
            if records == [] and offset < self._appended.get((name, partition), 0):
                tail.wait(name, OWN_S)
                records = tail.read(name, partition, offset, limit) or None
            if records is None:
                tail.leave(name, partition)
                records = self._reader(name).read(partition, offset, limit)
                if not records:
                    self._reader(name).leave(partition)
                    tail.follow(name, partition, offset)
        return records

    def read_each(
        self, topic: str, offsets: Mapping[int, Collection[int]]
    ) -> dict[tuple[int, int], Record | None]:
        self._check_id()
        records: dict[tuple[int, int], Record | None]
        records = {(partition, o): None for partition in offsets for o in offsets[partition]}
        with suppress(KafkaError):  # ``read`` reports it
            name, run = self._config.prefix + topic, self._admin._manager.run
            records |= run(fetch_each, self._admin, name, offsets) if records else {}
        return records

    def begin(self, topic: str, partition: int) -> int:
        return self._reader(self._check(topic, partition)).begin(partition)

    def end(self, topic: str, partition: int) -> int:
        name = self._check(topic, partition)
        if self._tail().end(name, partition) is None:
            return self._reader(name).end(partition)
        return self._known_end(name, partition)

    def wait(self, topic: str, timeout_s: float) -> None:
        self.partitions(topic)
        name = self._config.prefix + topic
        with self._keeps_truncation():
            if not self._tail().wait(name, timeout_s):
                self._reader(name).wait(timeout_s)

    def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
        at = self._check(topic, partition)
        reader = self._reader(at)
        end = self._known_end(at, partition)
        end = end if offset <= end else reader.end(partition)
        protocol.check_range(topic, partition, offset, reader.begin(partition), end)

    def replace(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        raise LogUnchangeable(
            f"{topic}: Kafka can't change records; retention drops them (log.retention_hours). To "
            "remove them earlier, delete the topic in Kafka"
        )

    def close(self) -> None:
        with self._lock:
            for _, client in self._clients:
                client.close()
            self._clients.clear()
            self._local = threading.local()
            if self._producer is not None:
                self._producer.close(1)
                self._producer = None
            self._admin.close()

    @contextmanager
    def _keeps_truncation(self) -> Iterator[None]:
        """Notes that the log was truncated, for all later calls."""
        try:
            yield
        except LogTruncated as error:
            self._truncated = error
            raise

    def _forget_ends(self, topic: str, partitions: Collection[int]) -> None:
        """After a failed append: its records may be on the log, so the broker is asked for the end."""
        with self._lock:
            self._appends += 1
        if (tail := self._local.__dict__.get("tail")) is not None:
            for partition in partitions:
                tail.leave(topic, partition)

    def _known_end(self, topic: str, partition: int) -> int:
        """Lower bound of the end without a request, from followed and appended records."""
        followed = self._tail().end(topic, partition) or 0
        return max(followed, self._appended.get((topic, partition), 0))

    # --- clients ---

    def _producing(self) -> Producer:
        with self._lock:
            if self._producer is None:
                self._producer = Producer(self._connection, self._config, MAX_RECORD_BYTES)
            return self._producer

    def _give_up(self, producer: Producer) -> None:
        """Replaces the producer for the next append: after a failure its order is broken."""
        with self._lock:
            if self._producer is producer:
                self._producer = None
        producer.close(0)

    def _check(self, topic: str, partition: int) -> str:
        """The topic's name in Kafka, once the partition and the log's id are checked."""
        protocol.check_partition(topic, partition, self.partitions(topic))
        self._check_id()
        return self._config.prefix + topic

    def _tail(self) -> KafkaTail:
        """This thread's tail."""
        tail: KafkaTail | None = self._local.__dict__.get("tail")
        if tail is None:
            tail = self._local.tail = self._make_client(lambda: KafkaTail(self._connection))
        return tail

    def _reader(self, topic: str) -> KafkaReader:
        """This thread's reader of a topic, by its name in Kafka."""
        readers: dict[str, tuple[KafkaReader, int]] = self._local.__dict__.setdefault("readers", {})
        if topic not in readers:
            reader = self._make_client(
                lambda: KafkaReader(self._connection, topic, self._patience_s, self._bounds)
            )
            readers[topic] = (reader, self._appends)
        reader, appends = readers[topic]
        if appends != self._appends:
            reader.forget_ends()
            readers[topic] = (reader, self._appends)
        return reader

    def _make_client(self, make: Callable[[], C]) -> C:
        """Makes a consumer for this thread, and closes those of ended threads."""
        try:
            client = make()
        except KafkaError as error:
            raise unavailable(self._url, error) from error
        with self._lock:
            for entry in [entry for entry in self._clients if not entry[0].is_alive()]:
                entry[1].close()
                self._clients.remove(entry)
            self._clients.append((threading.current_thread(), client))
        return client

    # --- topics and the id ---

    def _described(self, topic: str) -> dict[str, Any] | None:
        return self._topics.describe(self._config.prefix + topic)

    def _no_topic(self, topic: str) -> KeyError:
        """The error for a topic that no broker knows, if the log is the one that this client opened."""
        prefix = self._config.prefix
        if topic != ID_TOPIC:
            self._check_id(now=True)
        names = [name.removeprefix(prefix) for name in self._topics.names()]
        return protocol.no_topic(topic, [name for name in names if name != ID_TOPIC])

    def _bounds(self, name: str, partitions: list[int], begins: bool) -> dict[int, int]:
        bounds = self._topics.bounds(name, partitions, begins)
        if bounds is None:
            raise self._no_topic(name.removeprefix(self._config.prefix))
        return bounds

    def _topic_id(self) -> object:
        description = self._described(ID_TOPIC)
        return None if description is None else description["topic_id"]

    def _first_id(self) -> str | None:
        reader = self._reader(self._config.prefix + ID_TOPIC)
        reader.forget_ends()
        records = reader.read(0, reader.begin(0), 1)
        return records[0].value.decode() if records else None

    def _check_id(self, now: bool = False) -> None:
        """Raises LogLost if the broker lost the log that this client opened. A recreated topic has another
        topic id, which is cheap to request; the id record decides."""
        if self._truncated is not None:
            raise self._truncated
        moment = time.monotonic()
        if not self._id or (not now and moment - self._checked < CHECK_S):
            return
        topic_id = self._topic_id()
        if topic_id is None:
            self._absent_since = self._absent_since or moment
            if moment - self._absent_since < self._patience_s:
                # A broker that has just started, or elects a leader, may not know its topics yet.
                raise LogUnavailable(f"{self._url} doesn't know topic {ID_TOPIC} now; check that it is up")
        else:
            self._absent_since = 0.0
        if topic_id is None or topic_id != self._incarnation:
            log_id = self._first_id() if topic_id is not None else None
            if log_id != self._id:
                raise LogLost(
                    f"the log at {self._url} was {self._id} and is {log_id or 'empty'}: the broker lost "
                    "its data. Restart the parts: each starts again from the new log's beginning, and the "
                    "model from its last snapshot"
                )
            self._incarnation = topic_id
        self._checked = moment
