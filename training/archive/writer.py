"""Archives accepted events, items and examples as Parquet by day and hour.

    archive/TOPIC/day=2026-11-24/hour=15/part-PARTITION-FIRST-LAST.parquet

Records are stored as on the log, expanded, and the log drops nothing that isn't archived, unless disk space
is low. File names state the offsets they contain, so they say where to resume. Day and hour follow the event
time of the partition at arrival. Once an hour is over, its small files become one per partition.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.clock import is_due, timer_of
from recsys.events.event_types import decode
from recsys.events.records import EVENTS, EXAMPLES, ITEMS, Example, non_example, unpack
from recsys.log.compression import plain
from recsys.log.protocol import Log, LogLost, Record
from recsys.process.fold import Fold
from recsys.process.log_consumer import UNREADABLE, Consumer, check_same, hold_available
from recsys.process.part_process import write_atomically
from recsys.process.worker_share import WHOLE, Share
from training.archive.digest import checked
from training.archive.files import (
    FLUSH_BYTES,
    FORMAT,
    ArchiveFile,
    beside,
    files_of,
    hour_of,
    listed,
    merge_files,
    path_of,
    tidy,
)

if TYPE_CHECKING:
    import pyarrow.dataset as ds

PART: Final = "archive"
TOPICS: Final = (EVENTS, ITEMS, EXAMPLES)
_LOG: Final = logging.getLogger(__name__)
_FLUSH_MS: Final = 5_000
_READ: Final = 1_000
_ROWS: Final = 2_000  # of a batch that is read back
_HOUR_MS: Final = 3_600_000
SCHEMA: Final = pa.schema(
    {
        "topic": pa.large_string(),
        "partition": pa.int32(),
        "offset": pa.int64(),
        "time_ms": pa.int64(),
        "key": pa.large_binary(),
        "type": pa.large_string(),  # of the event; "example", "erased", "forget"; "unreadable"
        "value": pa.large_binary(),  # the record as encoded, before compression
        "user_id": pa.large_string(),
        "item_id": pa.large_string(),
        "request_id": pa.large_string(),
        "kind": pa.large_string(),
        "watch_ms": pa.int64(),
    }
)
_HIVE: Final = pa.schema({"day": pa.date32(), "hour": pa.int64()})


@dataclass
class _Buffer:
    """Records of one partition and hour that wait to be written."""

    hour: int
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    size: int = 0


class Archive(Fold):
    """Archives topics of a log into a folder, or a worker's partitions of them; ``clock`` (milliseconds)
    decides when to write."""

    def __init__(self, log: Log, folder: Path, clock: Callable[[], int], share: Share = WHOLE) -> None:
        """Raises LogLost if the folder contains the archive of another log."""
        self._log, self._folder, self._share = log, folder, share
        self._timer_ms = timer_of(clock)
        self._check_log()
        self._consumers: dict[str, Consumer] = {}
        self._time_ms: dict[tuple[str, int], int] = {}  # event time, by topic and partition
        self._buffers: dict[tuple[str, int], _Buffer] = {}
        self.written = 0
        self.files = 0
        self.missed = 0  # records that the log dropped before they were archived
        self._restore()

    def offsets(self, topic: str) -> list[int]:
        """The next offset to read, by partition; -1 for those of other workers."""
        offsets = self._consumers[topic].offsets
        return [offsets.get(partition, -1) for partition in range(self._log.partitions(topic))]

    def _turn(self) -> int:
        """Reads new records and writes files that are due."""
        moved = 0
        for topic, consumer in self._consumers.items():
            try:
                polled = consumer.poll(_READ)
            except LogLost:  # Kafka's retention doesn't wait for the archive
                self.flush()
                self._hold_next(topic)
                continue
            for partition, record in polled:
                self._take(topic, partition, record)
                moved += 1
        if is_due(self._timer_ms(), self._due_ms, _FLUSH_MS):
            self.flush()
        return moved

    def flush(self) -> None:
        """Writes all buffered records."""
        self._due_ms = self._timer_ms() + _FLUSH_MS
        written = {place: self._write(*place) for place in list(self._buffers)}
        for (topic, partition), offset in written.items():  # all files first: the log may be away
            hold_available(self._log, PART, topic, {partition: offset})

    def pause(self, release: bool) -> None:
        """Stops archiving until the next turn. ``release``: the log may then drop events and examples."""
        self._buffers.clear()  # to be read again
        self.needs_restore = True
        for topic in (EVENTS, EXAMPLES) if release else ():
            for partition in self._consumers[topic].offsets:
                if PART in self._log.holds(topic, partition):
                    self._log.release(PART, topic, partition)

    def _restore(self) -> None:
        """Resumes after the newest file of each partition, and cleans up after a kill."""
        self._buffers.clear()
        self._due_ms = self._timer_ms() + _FLUSH_MS
        for topic in TOPICS:
            newest = {file.partition: file for file in tidy(self._folder, topic, self._share)}
            for partition, file in newest.items():
                # Event time must not go back, or an hour's offsets would lie on both sides of another's.
                self._time_ms[topic, partition] = hour_of(file.path) * _HOUR_MS
            partitions = self._share.partitions(self._log.partitions(topic))
            following = {p: file.last + 1 for p, file in newest.items()}
            self._consumers[topic] = Consumer(self._log, topic, partitions, following)
            self._hold_next(topic)

    def _hold_next(self, topic: str) -> None:
        """Holds the next offsets to read, and skips those that the log has dropped."""
        consumer = self._consumers[topic]
        held = hold_available(self._log, PART, topic, consumer.offsets)
        for partition, offset in consumer.offsets.items():
            if missed := held[partition] - offset:
                self.missed += missed
                _LOG.error(
                    "%s/%d: the records %d to %d aren't archived, the log has dropped them",
                    topic, partition, offset, held[partition] - 1,
                )  # fmt: skip
        consumer.offsets = held

    def _check_log(self) -> None:
        id_file = self._folder / "log_id"
        if id_file.exists() and (saved_id := id_file.read_text()):
            check_same(self._log, saved_id, f"the archive in {self._folder}")
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(id_file, self._log.id.encode(), sync=True)

    def _take(self, topic: str, partition: int, record: Record) -> None:
        place, record = (topic, partition), _expanded(record)
        before_ms = self._time_ms.get(place, 0)
        row, time_ms = _row(topic, partition, record, before_ms)
        self._time_ms[place] = max(time_ms, before_ms)
        hour, before = self._time_ms[place] // _HOUR_MS, before_ms // _HOUR_MS
        buffer = self._buffers.get(place)
        if buffer is not None and (hour != before or buffer.size > FLUSH_BYTES):
            hold_available(self._log, PART, topic, {partition: self._write(topic, partition)})
        if before and hour != before:
            folder = path_of(self._folder, topic, before, partition, 0, 0).parent
            merge_files([file for file in listed(folder.glob("*")) if file.partition == partition])
        buffer = self._buffers.setdefault(place, _Buffer(hour))
        buffer.rows.append(row)
        buffer.size += len(record.value)

    def _write(self, topic: str, partition: int) -> int:
        """Writes the buffer of a partition; returns the offset after it."""
        buffer = self._buffers.pop((topic, partition))
        first, last = buffer.rows[0][2], buffer.rows[-1][2]
        columns = map(pa.array, zip(*buffer.rows, strict=True), SCHEMA.types)
        table = pa.Table.from_arrays(list(columns), schema=SCHEMA)
        with beside(path_of(self._folder, topic, buffer.hour, partition, first, last)) as partial:
            pq.write_table(table, partial, **FORMAT)
        self.written += len(table)
        self.files += 1
        return int(last) + 1


def read_archive(folder: Path, topic: str) -> "ds.Dataset":
    """All archived records of a topic, each once, with ``day`` and ``hour``, by partition and offset. Lazy:
    it reads the columns and row groups that are asked for, and compares no digests."""
    return _dataset(files_of(folder, topic))


def archived_rows(
    folder: Path, topic: str, columns: Sequence[str], where: "ds.Expression | None" = None
) -> Iterator[tuple[Any, ...]]:
    """Yields some columns of the archived records that satisfy ``where``, ordered as ``read_archive``. Where
    files are merged meanwhile, it reads on in the merged ones; what is removed is left out. Raises
    DamagedFile."""
    read: ArchiveFile | None = None
    while True:
        try:
            for file in files_of(folder, topic):
                if read is None or (file.partition, file.last) > (read.partition, read.last):
                    yield from _rows_of(file, read, columns, where)
                    read = file
            return
        except FileNotFoundError:  # before any of its rows: an open file stays readable
            continue


def _rows_of(
    file: ArchiveFile, read: ArchiveFile | None, columns: Sequence[str], where: "ds.Expression | None"
) -> Iterator[tuple[Any, ...]]:
    """Rows of a file that follow those of ``read``."""
    import pyarrow.dataset as ds

    dataset = _dataset([file])
    if read is not None and read.partition == file.partition and read.last >= file.first:
        later = ds.field("offset") > read.last
        where = later if where is None else where & later
    for fragment in dataset.get_fragments(where):
        batches = fragment.to_batches(
            schema=dataset.schema, columns=list(columns), filter=where, batch_size=_ROWS, batch_readahead=1
        )
        for batch in checked(file.path, batches):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _dataset(files: Sequence[ArchiveFile]) -> "ds.Dataset":
    import pyarrow.dataset as ds  # 50 MB that a process which only writes can do without

    schema = pa.schema([*SCHEMA, *_HIVE])
    if not files:
        return ds.dataset(schema.empty_table())
    partitioning = ds.partitioning(_HIVE, flavor="hive")
    paths = [str(file.path) for file in files]
    return ds.dataset(paths, schema=schema, format="parquet", partitioning=partitioning)


def _expanded(record: Record) -> Record:
    """The record as it was before compression: Parquet also finds what repeats among rows."""
    with suppress(*UNREADABLE):
        return record._replace(value=plain(record.value))
    return record


def _row(topic: str, partition: int, record: Record, now_ms: int) -> tuple[tuple[Any, ...], int]:
    """A record as a row of ``SCHEMA``, and its event time (``now_ms`` if it is unreadable)."""
    kind, time_ms = "unreadable", now_ms
    message: Any = None
    try:
        if topic == EXAMPLES:
            message = non_example(record.value) or unpack(record.value, Example)
            time_ms = message.closed_ms
        else:
            message = decode(record.value)
            time_ms = message.time_ms
        kind = type(message).__struct_config__.tag or "example"
    except UNREADABLE:
        pass  # archived raw: its dead letter states the reason
    ids = (getattr(message, name, None) for name in ("user_id", "item_id", "request_id", "kind"))
    texts = (None if value is None else str(value) for value in ids)
    row = (topic, partition, record.offset, time_ms, record.key, kind, record.value, *texts)
    return (*row, getattr(message, "watch_ms", None)), time_ms
