"""The archive: what was accepted of events, items and examples, as Parquet by day and hour.

    archive/TOPIC/day=2026-11-24/hour=15/part-PARTITION-FIRST-LAST.parquet

It is the log's cold half: each record stands here as it stood on the log, and the log drops nothing that is
not here yet. A file is written beside and renamed, and its name says which offsets it holds; so the names say
where to go on, and a kill at any time neither loses nor repeats a record. A record's day and hour are those
of its partition's event time when it came: a late one lies where it was read, and offsets stay together. An
hour's many small files become one per partition once the hour is over. Who is forgotten is taken out of the
files (training/deletion/erasure.py).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from recsys.events.event_types import decode
from recsys.events.records import EVENTS, EXAMPLES, ITEMS, Example, unpack, without_example
from recsys.log.protocol import Log, Record
from recsys.process.log_consumer import UNREADABLE, Consumer, check_same
from recsys.process.part_process import write_atomically
from recsys.process.retry_loop import Turns
from training.archive.files import (
    FLUSH_BYTES,
    beside,
    files_of,
    hour_of,
    listed,
    merge,
    path_of,
    tidy,
)

PART: Final = "archive"
TOPICS: Final = (EVENTS, ITEMS, EXAMPLES)
_FLUSH_MS: Final = 5_000
_READ: Final = 1_000
_HOUR_MS: Final = 3_600_000
_LOG: Final = logging.getLogger(__name__)
SCHEMA: Final = pl.Schema(
    {
        "topic": pl.String,
        "partition": pl.Int32,
        "offset": pl.Int64,
        "time_ms": pl.Int64,
        "key": pl.Binary,
        "type": pl.String,  # of the event; "example", "erased", "forget"; "unreadable"
        "value": pl.Binary,  # the record as it stood on the log
        "user_id": pl.String,
        "item_id": pl.String,
        "request_id": pl.String,
        "kind": pl.String,
        "watch_ms": pl.Int64,
    }
)


@dataclass
class _Buffer:
    """Records of one partition and hour on their way to a file."""

    hour: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    size: int = 0


class Archive(Turns):
    """Archives topics of a log into a folder. ``clock`` (milliseconds) says when to write."""

    def __init__(self, log: Log, folder: Path, clock: Callable[[], int]) -> None:
        """Raises LogLost where the folder holds the archive of another log."""
        self._log, self._folder, self._clock = log, folder, clock
        self._check_log()
        self._consumers: dict[str, Consumer] = {}
        self._time_ms: dict[tuple[str, int], int] = {}  # event time, by topic and partition
        self._buffers: dict[tuple[str, int], _Buffer] = {}
        self.written = 0
        self.files = 0
        self._restore()

    def offsets(self, topic: str) -> list[int]:
        """The next offset to read, by partition."""
        return [offset for _, offset in sorted(self._consumers[topic].offsets.items())]

    def _turn(self) -> int:
        """Reads what is there and writes what is due."""
        moved = 0
        for topic, consumer in self._consumers.items():
            for partition, record in consumer.poll(_READ):
                self._take(topic, partition, record)
                moved += 1
        if self._clock() >= self._due_ms:
            self.flush()
        return moved

    def flush(self) -> None:
        """Writes everything that was read."""
        self._due_ms = self._clock() + _FLUSH_MS
        written = {place: self._write(*place) for place in list(self._buffers)}
        for (topic, partition), offset in written.items():  # all files first: the log may be away
            self._log.hold(PART, topic, partition, offset)

    def _restore(self) -> None:
        """Goes on from what is written."""
        self._buffers.clear()
        self._due_ms = self._clock() + _FLUSH_MS
        for topic in TOPICS:
            self._open(topic)

    def _open(self, topic: str) -> None:
        """Tidies up after a kill, and goes on after the newest file of each partition."""
        newest = {held.partition: held for held in tidy(self._folder, topic)}
        places = {partition: held.last + 1 for partition, held in newest.items()}
        for partition, held in newest.items():
            # Event time must not go back, or an hour's offsets would lie on both sides of another's.
            self._time_ms[topic, partition] = hour_of(held.path) * _HOUR_MS
        partitions = list(range(self._log.partitions(topic)))
        self._consumers[topic] = Consumer(self._log, topic, partitions, places)
        for partition, offset in self._consumers[topic].offsets.items():
            self._log.hold(PART, topic, partition, offset)

    def _check_log(self) -> None:
        about = self._folder / "log_id"
        if about.exists():
            check_same(self._log, about.read_text(), f"the archive in {self._folder}")
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(about, self._log.id.encode())

    def _take(self, topic: str, partition: int, record: Record) -> None:
        place = (topic, partition)
        before_ms = self._time_ms.get(place, 0)
        row, time_ms = _row(topic, partition, record, before_ms)
        self._time_ms[place] = max(time_ms, before_ms)
        hour, before = self._time_ms[place] // _HOUR_MS, before_ms // _HOUR_MS
        buffer = self._buffers.get(place)
        if buffer is not None and (hour != before or buffer.size > FLUSH_BYTES):
            self._log.hold(PART, topic, partition, self._write(topic, partition))
        if before and hour != before:
            there = path_of(self._folder, topic, before, partition, 0, 0).parent
            merge([held for held in listed(there.glob("*")) if held.partition == partition])
        buffer = self._buffers.setdefault(place, _Buffer(hour))
        buffer.rows.append(row)
        buffer.size += len(record.value)

    def _write(self, topic: str, partition: int) -> int:
        """Writes what waits; returns the offset after it."""
        buffer = self._buffers.pop((topic, partition))
        first, last = buffer.rows[0][2], buffer.rows[-1][2]
        frame = pl.DataFrame(buffer.rows, schema=SCHEMA, orient="row")
        with beside(path_of(self._folder, topic, buffer.hour, partition, first, last)) as partial:
            frame.write_parquet(partial, compression="zstd")
        self.written += len(frame)
        self.files += 1
        return int(last) + 1


def read_archive(folder: Path, topic: str) -> pl.LazyFrame:
    """All archived records of a topic, each once, with their ``day`` and ``hour``; ordered by partition and
    offset."""
    paths = [held.path for held in files_of(folder, topic)]
    if not paths:
        return pl.LazyFrame(schema={**SCHEMA, "day": pl.Date, "hour": pl.Int64})
    return pl.scan_parquet(
        paths, hive_partitioning=True, hive_schema={"day": pl.Date, "hour": pl.Int64}
    )


def _row(topic: str, partition: int, record: Record, now_ms: int) -> tuple[tuple[Any, ...], int]:
    """A record as a row of ``SCHEMA``, and its event time (``now_ms`` where it can't be read)."""
    kind, time_ms, fields = "unreadable", now_ms, (None,) * 5
    try:
        if topic == EXAMPLES and (empty := without_example(record.value)) is not None:
            kind, time_ms, fields = type(empty).__name__.lower(), empty.closed_ms, _fields(empty)
        elif topic == EXAMPLES:
            example = unpack(record.value, Example)
            kind, time_ms, fields = "example", example.closed_ms, _fields(example)
        else:
            event = decode(record.value)
            kind, time_ms = type(event).__name__.lower(), event.time_ms
            fields = _fields(event)
    except UNREADABLE:
        pass  # kept raw: its dead letter says why
    row = (topic, partition, record.offset, time_ms, record.key, kind, record.value, *fields)
    return row, time_ms


def _fields(of: object) -> tuple[Any, ...]:
    def text(name: str) -> str | None:
        value = getattr(of, name, None)
        return None if value is None else str(value)

    watch_ms = getattr(of, "watch_ms", None)
    return text("user_id"), text("item_id"), text("request_id"), text("kind"), watch_ms
