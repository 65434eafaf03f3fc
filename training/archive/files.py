"""Parquet files of the archive: naming, atomic replacement, merging, and removal of a deleted user's rows or
of the oldest hours."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from glob import glob
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.events.records import EVENTS, EXAMPLES
from recsys.log.protocol import Record
from recsys.process.worker_share import WHOLE, Share
from training.archive.digest import DamagedFile, check_digest, read_batches, read_table, seal

_LOG: Final = logging.getLogger(__name__)
FLUSH_BYTES: Final = 32_000_000
_MERGE_ROWS: Final = 1_000  # read at once
# Text repeats, so it gets dictionaries; records don't, and a dictionary for them costs time and space.
FORMAT: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": ["topic", "partition", "key", "type", "user_id", "item_id", "request_id", "kind"],
    "column_encoding": {"offset": "DELTA_BINARY_PACKED"},
    "write_page_checksum": True,  # `recsys check` compares them
}
_NAME: Final = re.compile(r"part-(\d+)-(\d+)-(\d+)\.parquet")


class ArchiveFile(NamedTuple):
    """An archive file and the offsets [first, last] that it covers."""

    path: Path
    partition: int
    first: int
    last: int


def files_of(folder: Path, topic: str, share: Share = WHOLE) -> list[ArchiveFile]:
    """Lists the files of a topic, or of a worker's partitions of it, that contain each record once, by
    partition and offset. A kill between merging and removing may leave covered files, which are skipped."""
    files: list[ArchiveFile] = []
    for file in _own(folder, topic, share):
        before = files[-1] if files else None
        if before is None or before.partition != file.partition or before.last < file.last:
            files.append(file)
    return files


def tidy(folder: Path, topic: str, share: Share = WHOLE) -> list[ArchiveFile]:
    """Removes leftovers of a kill and merges the files of finished hours; returns ``files_of``."""
    for partial in _paths(folder, topic, ".part-*"):
        if share.has(int(partial.name.split("-")[1])):
            partial.unlink()
    files = files_of(folder, topic, share)
    current = {file.path for file in files}
    for file in _own(folder, topic, share):
        if file.path not in current:
            file.path.unlink()
    hours: dict[tuple[int, Path], list[ArchiveFile]] = {}
    for file in files:
        hours.setdefault((file.partition, file.path.parent), []).append(file)
    for (partition, hour), parts in hours.items():
        if hour != max(path for p, path in hours if p == partition):
            merge_files(parts)
    return files_of(folder, topic, share)


def _own(folder: Path, topic: str, share: Share) -> list[ArchiveFile]:
    return [file for file in listed(_paths(folder, topic)) if share.has(file.partition)]


def _paths(folder: Path, topic: str, name: str = "*") -> list[Path]:
    """Paths in the folders of a topic's hours, which other workers may remove: ``Path.glob`` would raise."""
    return [folder / path for path in glob(f"{topic}/day=*/hour=*/{name}", root_dir=folder)]


def merge_files(parts: Sequence[ArchiveFile]) -> None:
    """Merges the files of one hour and partition, one row group at a time: an hour may exceed memory. They
    stay as they are if one is damaged."""
    if len(parts) < 2:
        return
    name = f"part-{parts[0].partition}-{parts[0].first}-{parts[-1].last}.parquet"
    merged, sources = parts[0].path.with_name(name), [part.path for part in parts]
    try:
        with _rewritten(merged, sources) as (tables, file):
            for table in tables:
                file.write_table(table, row_group_size=len(table))
    except DamagedFile as error:
        _LOG.error("the files of an hour aren't merged: %s", error)
        return
    for part in parts:
        part.path.unlink()


@contextmanager
def _rewritten(path: Path, sources: Sequence[Path]) -> Iterator[tuple[Iterator[pa.Table], pq.ParquetWriter]]:
    """Yields the rows of some files, and a writer for ``path`` with the schema of the first. Raises
    DamagedFile before anything is written: damage must get no digest."""
    for source in sources:
        check_digest(source)
    schema = pq.read_schema(sources[0])
    with beside(path) as partial, pq.ParquetWriter(partial, schema, **FORMAT) as file:
        yield _row_groups(sources), file


def _row_groups(paths: Iterable[Path]) -> Iterator[pa.Table]:
    """Reads the rows of some files in order, as tables of about ``FLUSH_BYTES``."""
    batches, size = list[pa.RecordBatch](), 0
    for path in paths:
        for batch in read_batches(path, _MERGE_ROWS):
            batches.append(batch)
            size += batch.nbytes
            if size >= FLUSH_BYTES:
                yield pa.Table.from_batches(batches)
                batches, size = [], 0
    if batches:
        yield pa.Table.from_batches(batches)


def erase_rows(
    folder: Path, topic: str, partition: int, keys: Collection[bytes], is_erased: Callable[[Record], object]
) -> list[DamagedFile]:
    """Removes the records for which ``is_erased``, which may hold only for records of ``keys``. Files keep
    their names. Returns the damage of the files that it left as they were."""
    damage = list[DamagedFile]()
    for part in files_of(folder, topic):
        if part.partition != partition:
            continue
        try:
            if _has_key(part.path, keys):
                _erase_in(part.path, is_erased)
        except DamagedFile as error:
            damage.append(error)
    return damage


def _erase_in(path: Path, is_erased: Callable[[Record], object]) -> None:
    with _rewritten(path, [path]) as (tables, file):
        for table in tables:
            columns = (table[name].to_pylist() for name in ("offset", "key", "value"))
            records = map(Record, *columns)
            remaining = table.filter(pa.array([not is_erased(record) for record in records]))
            file.write_table(remaining, row_group_size=max(1, len(remaining)))


def keys_of(folder: Path, topic: str, partition: int) -> set[bytes]:
    """The keys of all archived records of a partition."""
    keys: set[bytes] = set()
    for part in files_of(folder, topic):
        if part.partition == partition:
            keys |= set(read_table(part.path, ["key"])["key"].to_pylist())
    return keys


def _has_key(path: Path, keys: Collection[bytes]) -> bool:
    values = pa.array(keys, pa.large_binary())
    batches = read_batches(path, _MERGE_ROWS, ["key"])
    return any(pc.is_in(batch["key"], values).true_count for batch in batches)


def hour_of(path: Path) -> int:
    """The hour of a file's folder, in hours since 1970."""
    day, hour = (part.partition("=")[2] for part in path.parts[-3:-1])
    return int(datetime.fromisoformat(f"{day}T{hour}:00+00:00").timestamp()) // 3600


def listed(paths: Iterable[Path]) -> list[ArchiveFile]:
    """The archive files among some paths, by partition and first offset, then the longer one first."""
    matches = ((path, _NAME.fullmatch(path.name)) for path in paths)
    files = [ArchiveFile(path, *map(int, match.groups())) for path, match in matches if match]
    return sorted(files, key=lambda file: (file.partition, file.first, -file.last))


def path_of(folder: Path, topic: str, hour: int, partition: int, first: int, last: int) -> Path:
    moment = datetime.fromtimestamp(hour * 3600, UTC)
    name = f"part-{partition}-{first}-{last}.parquet"
    return folder / topic / f"day={moment:%Y-%m-%d}" / f"hour={moment:%H}" / name


def drop_oldest(folder: Path, most_bytes: int, share: Share = WHOLE) -> int:
    """Removes files of the oldest hours until the archive has at most ``most_bytes`` on the disk; returns
    their number. The newest file of each partition stays: it says where to resume; the catalogue (``items``)
    stays whole. Only the archive's writer may call this. Each of several removes its own files of these
    hours, and counts on the others for theirs: all partitions begin with the same hour, to within one hour's
    file."""
    by_hour, newest = defaultdict[int, list[ArchiveFile]](list), set[Path]()
    for topic in (EVENTS, EXAMPLES):
        files = listed(_paths(folder, topic))
        newest |= {file.path for file in {file.partition: file for file in files}.values()}
        for file in files:
            by_hour[hour_of(file.path)].append(file)
    sizes = {path: _bytes(path) for path in _paths(folder, "*")}
    size, dropped = sum(sizes.values()), 0
    for hour in sorted(by_hour):
        if size <= most_bytes:
            break
        for file in by_hour[hour]:
            if file.path in newest:
                continue
            size -= sizes.get(file.path, 0)
            if share.has(file.partition):
                file.path.unlink()
                dropped += 1
        for path in {file.path.parent for file in by_hour[hour]}:
            with suppress(OSError):  # not empty
                path.rmdir()
                path.parent.rmdir()
    return dropped


def _bytes(path: Path) -> int:
    """Bytes on the disk; 0 of a file that another worker has removed."""
    with suppress(FileNotFoundError):
        return path.lstat().st_blocks * 512
    return 0


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, which it replaces afterwards, with a digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
    except DamagedFile:
        partial.unlink(missing_ok=True)
        raise
    _publish(partial, path)


def _publish(partial: Path, path: Path) -> None:
    seal(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
