"""The log protocol: append, read from an offset, retention. Three implementations, one contract suite.

``MemoryLog`` (here) is for tests and for replay in one process, ``recsys.sqlite_log`` for a laptop,
``recsys.kafka_log`` for a cluster. A log knows bytes only: what they mean is ``recsys.events``' business.
Offsets grow within a partition and needn't be dense. A log has an id, made at its creation: state that was
folded from a log of another id must not be continued.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


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

    ``retention_ms`` / ``retention_bytes``: what is older or beyond may be dropped; 0 keeps everything.
    """

    name: str
    partitions: int = 1
    retention_ms: int = 0
    retention_bytes: int = 0

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise ValueError(
                f"topic {self.name!r} has {self.partitions} partitions, expected at least 1"
            )


class LogLost(RuntimeError):
    """The log is not the one that a state was folded from (its id differs, or offsets are beyond its end)."""


class Log(Protocol):
    """An append-only log of topics. Safe for several threads and, except in memory, several processes."""

    @property
    def id(self) -> str:
        """Made when the log was created; the same for every client of it, for ever."""

    def create(self, topic: Topic) -> None:
        """Creates a topic; does nothing where it exists with as many partitions, else raises ValueError."""

    def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises KeyError naming the topic where there is none."""

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        """Appends and returns the offsets, in order. When it returns, the records are committed, and all
        records of one call are committed together (Kafka: all acknowledged)."""

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        """Up to ``limit`` records with offsets ≥ ``offset``, in order; empty at the end. Never waits.
        Raises LogLost where ``offset`` lies before the beginning (retention) or beyond the end."""

    def begin(self, topic: str, partition: int) -> int:
        """The first offset that can still be read (the end, where there is none)."""

    def end(self, topic: str, partition: int) -> int:
        """The offset after the last record: read(end) is empty, and the next record has an offset ≥ end."""

    def wait(self, topic: str, timeout_s: float) -> None:
        """Returns when something may have been appended to the topic, or after the timeout."""

    def trim(self, topic: str, partition: int, before: int) -> None:
        """Drops the records with offsets < ``before``, where the implementation can; retention calls it."""

    def close(self) -> None: ...


class MemoryLog:
    """The log as lists, for tests and for replay in one process. Kept by nobody after the process."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self._topics: dict[str, list[list[Record]]] = {}
        self._begin: dict[tuple[str, int], int] = {}

    def create(self, topic: Topic) -> None:
        there = self._topics.setdefault(topic.name, [[] for _ in range(topic.partitions)])
        if len(there) != topic.partitions:
            raise ValueError(
                f"topic {topic.name!r} has {len(there)} partitions, expected {topic.partitions}: "
                "use another name or another log"
            )

    def partitions(self, topic: str) -> int:
        return len(self._partitions(topic))

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        offsets = []
        for partition, key, value in records:
            offset = self.end(topic, partition)
            self._partitions(topic)[partition].append(Record(offset, key, value))
            offsets.append(offset)
        return offsets

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        begin, end = self.begin(topic, partition), self.end(topic, partition)
        if not begin <= offset <= end:
            raise LogLost(f"{topic}/{partition}: offset {offset} is not in [{begin}, {end}]")
        return self._partitions(topic)[partition][offset - begin : offset - begin + limit]

    def begin(self, topic: str, partition: int) -> int:
        return self._begin.get((topic, partition), 0)

    def end(self, topic: str, partition: int) -> int:
        return self.begin(topic, partition) + len(self._partitions(topic)[partition])

    def wait(self, topic: str, timeout_s: float) -> None:
        """Nothing can be appended while the one thread waits."""

    def trim(self, topic: str, partition: int, before: int) -> None:
        begin = self.begin(topic, partition)
        drop = max(0, min(before, self.end(topic, partition)) - begin)
        del self._partitions(topic)[partition][:drop]
        self._begin[topic, partition] = begin + drop

    def close(self) -> None: ...

    def _partitions(self, topic: str) -> list[list[Record]]:
        try:
            return self._topics[topic]
        except KeyError:
            raise KeyError(
                f"no topic {topic!r}; there are {', '.join(sorted(self._topics))}"
            ) from None
