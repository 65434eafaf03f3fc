"""The log protocol: append, read from an offset, retention. Three implementations, one contract suite.

``MemoryLog`` (here) is for tests and single-process replay, ``recsys.log.sqlite_log`` for a laptop,
``recsys.log.kafka_log`` for a cluster. Offsets grow within a partition and needn't be dense. State folded
from a log with another id must not be continued. A fold *holds* the offset that it would restart from;
records at or after a held offset are not dropped.
"""

import re
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


class Record(NamedTuple):
    """One record as read."""

    offset: int
    key: bytes
    value: bytes


class Append(NamedTuple):
    """One record to append."""

    partition: int
    key: bytes
    value: bytes


@dataclass(frozen=True)
class Topic:
    """A named sequence of records in partitions.

    Records older than ``retention_ms``, or beyond ``retention_bytes`` per partition, may be dropped, oldest
    first; 0 keeps everything.
    """

    name: str
    partitions: int = 1
    retention_ms: int = 0
    retention_bytes: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", self.name):
            raise ValueError(f"topic name is {self.name!r}, expected 1 to 100 of A-Z a-z 0-9 . _ -")
        if self.partitions < 1:
            count = self.partitions
            raise ValueError(f"topic {self.name!r} has {count} partitions, expected at least 1")


@dataclass(frozen=True)
class Brokers:
    """Kafka's brokers, the way to them, and the topics that are made there."""

    url: str  # kafka://host:port[,host:port]
    prefix: str = ""  # before each topic's name, for brokers that several systems share
    # Copies of a topic, and how many of them confirm an append; 0: as the brokers say.
    replication: int = 0
    min_insync: int = 0
    compression: str = "none"  # of appended batches: gzip or zstd
    tls: bool = False
    # PEM of the authority that signed the brokers' certificates; empty: the machine's.
    ca_file: str = ""
    cert_file: str = ""  # PEM of this client's certificate, where the brokers ask for one
    key_file: str = ""  # PEM of its private key, if that isn't in cert_file
    sasl: str = "none"  # plain, scram-sha-256 or scram-sha-512
    user: str = ""
    # File that holds the password alone; empty: the environment variable RECSYS_LOG_PASSWORD.
    password_file: str = ""


class LogLost(RuntimeError):
    """The log is not the one a state was folded from: its id differs, or offsets are before its begin or
    beyond its end."""


class LogUnavailable(RuntimeError):
    """The log can't be read or written now (broker down, disk full). Acknowledged records are safe. Any
    record of a failed append may have been committed: consumers drop repeats by their ids."""


class LogDamaged(LogUnavailable):
    """Files of the log changed on disk: a checksum differs, or records are missing."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            f"{where}: {what} is damaged on disk. `recsys check STATE` lists all damage; on a stopped system "
            "`recsys check STATE --repair` repairs it"
        )


class LogUnchangeable(RuntimeError):
    """The log's records can't be changed (Kafka): only retention removes them."""


def no_topic(topic: str, topics: Iterable[str]) -> KeyError:
    """The error for a topic that wasn't created."""
    return KeyError(f"no topic {topic!r}; there are: {', '.join(sorted(topics)) or 'none'}")


def check_partitions(topic: Topic, partitions: int) -> None:
    """Raises ValueError if an existing topic has another number of partitions than requested."""
    if partitions != topic.partitions:
        raise ValueError(
            f"topic {topic.name!r} has {partitions} partitions, expected {topic.partitions}: they are fixed "
            f"when a log is made. Set log.partitions to {partitions}, or start with a new log (another state "
            "folder)"
        )


def check_partition(topic: str, partition: int, partitions: int) -> None:
    """Raises ValueError for a partition that the topic doesn't have."""
    if not 0 <= partition < partitions:
        raise ValueError(
            f"topic {topic!r} has no partition {partition}, it has 0 to {partitions - 1}; "
            "partition_of(user_id, partitions) gives the right one"
        )


def check_appends(
    topic: str, partitions: int, records: Sequence[Append], most_bytes: int | None = None
) -> None:
    """Raises ValueError for an unknown partition or a record of more than ``most_bytes``."""
    for partition in {record[0] for record in records}:
        check_partition(topic, partition, partitions)
    largest = max((len(key) + len(value) for _, key, value in records), default=0)
    if most_bytes is not None and largest > most_bytes:
        raise ValueError(
            f"{topic}: a record has {largest} bytes, expected at most {most_bytes}, and appending it again "
            "doesn't help: make it smaller (lower step.examples, raise parameter_server.shards), or use a "
            "log without this limit (log.url: sqlite)"
        )


def check_range(topic: str, partition: int, offset: int, begin: int, end: int) -> None:
    """Raises LogLost, with the remedy, for an offset that can't be read."""
    if offset < begin:
        raise LogLost(
            f"{topic}/{partition}: offset {offset} is gone, the log begins at {begin}: retention passed it. "
            "Start again from a snapshot at or after it, or from the archive"
        )
    if offset > end:
        raise LogLost(
            f"{topic}/{partition}: offset {offset} is beyond the end, {end}: the log lost records or is "
            "another one. Start again from a snapshot of this log, or from its beginning without one"
        )


class RangeReader(Protocol):
    """The part of ``Log`` that reading a range needs."""

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        """Up to ``limit`` records with offsets ≥ ``offset``, in order; empty at the end. It may return fewer
        than available (Kafka: one poll): ``read_range`` reads on. Never waits. Raises LogLost if ``offset``
        is before the beginning (retention) or beyond the end."""

    def begin(self, topic: str, partition: int) -> int:
        """The first readable offset (the end of an empty partition)."""

    def end(self, topic: str, partition: int) -> int:
        """The offset after the last record: read(end) is empty, and the next record has an offset ≥ end."""


class Log(RangeReader, Protocol):
    """An append-only log of topics. Safe for several threads and, except in memory, several processes."""

    @property
    def id(self) -> str:
        """Unique id, made when the log was created."""

    def create(self, topic: Topic) -> None:
        """Creates a topic unless it exists; raises ValueError for another number of partitions."""

    def partitions(self, topic: str) -> int:
        """Number of a topic's partitions. Raises KeyError for an unknown topic."""

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        """Appends all records together and returns their offsets; on return they are committed."""

    def wait(self, topic: str, timeout_s: float) -> None:
        """Waits until something may have been appended to the topic, or for the timeout."""

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Drops records below ``before`` and all holds (Kafka: only the broker drops records)."""
        return

    def retain(self, topic: str, now_ms: int) -> int:
        """Drops a slice of the records that the topic's retention allows, up to the lowest held offset;
        returns their number. Call it again while it drops. Kafka does this by itself."""
        return 0

    def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
        """Keeps records at or after ``offset``, until ``name`` (a fold, a snapshot) holds another offset or
        releases it. Raises LogLost if it can't be read any more. Kafka has no holds: there it only checks, so
        set the retention longer than the age of the oldest snapshot to be used."""

    def release(self, name: str, topic: str, partition: int | None = None) -> None:
        """Releases the holds of ``name`` on the topic, or on one partition, if any."""
        return

    def holds(self, topic: str, partition: int) -> dict[str, int]:
        """The held offsets by name; the lowest limits dropping."""
        return {}

    def keyed(self, topic: str, partition: int, keys: Collection[bytes], before: int) -> list[int]:
        """The offsets < ``before`` of records with one of the keys, ascending. It scans all records."""
        stop = min(before, self.end(topic, partition))
        records = read_range(self, topic, partition, self.begin(topic, partition), stop)
        return [record.offset for record in records if record.key in keys]

    def replace(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        """Overwrites keys and values of records irrecoverably; returns how many still existed. Raises
        LogUnchangeable (Kafka). Readers of the old records must not need to read them again (``holds``)."""

    def scrub(self, topic: str) -> bool:
        """Removes all traces of replaced and dropped records from storage; appends to the topic wait
        meanwhile. False if that can't be done now: call again."""
        return True

    def close(self) -> None:
        """Releases files and connections; does nothing by default."""
        return


def read_range(
    log: RangeReader, topic: str, partition: int, start: int, stop: int, most: int = 1000
) -> Iterator[Record]:
    """All records with offsets in [start, stop), in order. Raises LogLost as ``Log.read``."""
    while start < stop and (records := log.read(topic, partition, start, min(most, stop - start))):
        is_beyond = records[-1].offset >= stop
        yield from [r for r in records if r.offset < stop] if is_beyond else records
        start = records[-1].offset + 1


def records_of_keys(
    log: Log, topic: str, partition: int, keys: Collection[bytes], end: int
) -> Iterator[Record]:
    """The records of some keys before ``end`` that the log still has."""
    for offset in log.keyed(topic, partition, keys, end) if keys else ():
        if offset >= log.begin(topic, partition):
            yield from (r for r in log.read(topic, partition, offset, 1) if r.offset == offset)


def newest_first(
    log: RangeReader, topic: str, partition: int, begin: int | None = None, stop: int | None = None,
    first: int = 1, most: int = 1000,
) -> Iterator[Record]:  # fmt: skip
    """All records with offsets in [begin, stop) (default: all), the newest first, whatever the length of
    reads and the gaps between offsets. Reads ``first`` offsets, then four times as many each, up to ``most``
    at a time. Raises LogLost as ``Log.read``."""
    begin = max(begin or 0, log.begin(topic, partition))
    stop, span = log.end(topic, partition) if stop is None else stop, first
    while stop > begin:
        start = max(begin, stop - span)
        yield from reversed(list(read_range(log, topic, partition, start, stop, most)))
        stop, span = start, min(4 * span, most)


@runtime_checkable
class JumpReader(Protocol):
    """A log whose reads elsewhere than after the one before take round trips (Kafka), so it reads many."""

    def read_each(
        self, topic: str, offsets: Mapping[int, Collection[int]]
    ) -> dict[tuple[int, int], Record | None]:
        """Records by partition and offset; None for one that wasn't sent: ``read`` says why."""


class MemoryLog(Log):
    """The log as lists, for tests and single-process replay. Without a clock, so only ``trim`` drops
    records."""

    id = ""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._lock = threading.RLock()
        self._topics: dict[str, list[list[Record]]] = {}
        self._begin: dict[tuple[str, int], int] = {}
        self._holds: dict[tuple[str, int], dict[str, int]] = {}

    def create(self, topic: Topic) -> None:
        with self._lock:
            partitions = self._topics.setdefault(topic.name, [[] for _ in range(topic.partitions)])
        check_partitions(topic, len(partitions))

    def partitions(self, topic: str) -> int:
        return len(self._partitions(topic))

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        check_appends(topic, self.partitions(topic), records)
        offsets = []
        with self._lock:
            partitions = self._partitions(topic)
            for partition, key, value in records:
                offset = self.begin(topic, partition) + len(partitions[partition])
                partitions[partition].append(Record(offset, key, value))
                offsets.append(offset)
        return offsets

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        with self._lock:
            begin = self.begin(topic, partition)
            check_range(topic, partition, offset, begin, self.end(topic, partition))
            return self._records(topic, partition)[offset - begin : offset - begin + limit]

    def begin(self, topic: str, partition: int) -> int:
        self._records(topic, partition)
        return self._begin.get((topic, partition), 0)

    def end(self, topic: str, partition: int) -> int:
        with self._lock:
            return self.begin(topic, partition) + len(self._records(topic, partition))

    def wait(self, topic: str, timeout_s: float) -> None:
        """Returns at once: in one thread, nothing can be appended meanwhile."""

    def trim(self, topic: str, partition: int, before: int) -> None:
        with self._lock:
            floor = min(self.holds(topic, partition).values(), default=before)
            begin = self.begin(topic, partition)
            drop = max(0, min(before, floor, self.end(topic, partition)) - begin)
            del self._records(topic, partition)[:drop]
            self._begin[topic, partition] = begin + drop

    def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
        with self._lock:
            begin, end = self.begin(topic, partition), self.end(topic, partition)
            check_range(topic, partition, offset, begin, end)
            self._holds.setdefault((topic, partition), {})[name] = offset

    def release(self, name: str, topic: str, partition: int | None = None) -> None:
        with self._lock:
            for each in range(self.partitions(topic)) if partition is None else (partition,):
                self._holds.get((topic, each), {}).pop(name, None)

    def holds(self, topic: str, partition: int) -> dict[str, int]:
        self._records(topic, partition)
        return dict(self._holds.get((topic, partition), {}))

    def replace(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        with self._lock:
            begin, end = self.begin(topic, partition), self.end(topic, partition)
            existing = [record for record in records if begin <= record.offset < end]
            for record in existing:
                self._records(topic, partition)[record.offset - begin] = record
        return len(existing)

    def _partitions(self, topic: str) -> list[list[Record]]:
        try:
            return self._topics[topic]
        except KeyError:
            raise no_topic(topic, self._topics) from None

    def _records(self, topic: str, partition: int) -> list[Record]:
        check_partition(topic, partition, self.partitions(topic))
        return self._topics[topic][partition]
