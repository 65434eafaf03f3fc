"""The archive's files: named by the offsets that they hold, written beside and renamed, merged, and written
anew without the rows of a user who is forgotten. The names and the layout are
training/archive/writer.py's."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.log.protocol import Record

FLUSH_BYTES: Final = 32_000_000
_MERGE_ROWS: Final = 1_000  # read at once
_NAME: Final = re.compile(r"part-(\d+)-(\d+)-(\d+)\.parquet")


class Held(NamedTuple):
    """A file of the archive and the offsets [first, last] that it covers."""

    path: Path
    partition: int
    first: int
    last: int


def files_of(folder: Path, topic: str) -> list[Held]:
    """The files of a topic that hold each record once, by partition and offset.

    A file whose offsets another one covers was left over by a kill between merging and removing.
    """
    kept: list[Held] = []
    for held in listed((folder / topic).glob("day=*/hour=*/*")):
        before = kept[-1] if kept else None
        if before is None or before.partition != held.partition or before.last < held.last:
            kept.append(held)
    return kept


def tidy(folder: Path, topic: str) -> list[Held]:
    """Removes what a kill left over, merges the hours that are over; returns the files, as ``files_of``."""
    for half in (folder / topic).glob("day=*/hour=*/.part-*"):
        half.unlink()
    kept = files_of(folder, topic)
    wanted = {held.path for held in kept}
    for held in listed((folder / topic).glob("day=*/hour=*/*")):
        if held.path not in wanted:
            held.path.unlink()
    hours: dict[tuple[int, Path], list[Held]] = {}
    for held in kept:
        hours.setdefault((held.partition, held.path.parent), []).append(held)
    for (partition, there), parts in hours.items():
        if there != max(path for p, path in hours if p == partition):
            merge(parts)
    return files_of(folder, topic)


def merge(parts: Sequence[Held]) -> None:
    """Puts the files of one hour and partition into one, whose name covers theirs, and removes them.

    An hour may be more than memory holds: no more than one row group of it is there at a time.
    """
    if len(parts) < 2:
        return
    name = f"part-{parts[0].partition}-{parts[0].first}-{parts[-1].last}.parquet"
    schema = pq.read_schema(parts[0].path)
    with (
        beside(parts[0].path.with_name(name)) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd") as file,
    ):
        for table in _row_groups(held.path for held in parts):
            file.write_table(table, row_group_size=len(table))
    for held in parts:
        held.path.unlink()


def _row_groups(paths: Iterable[Path]) -> Iterator[pa.Table]:
    """The rows of some files in order, as tables of about ``FLUSH_BYTES``."""
    batches, size = list[pa.RecordBatch](), 0
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_MERGE_ROWS, use_threads=False):
                batches.append(batch)
                size += batch.nbytes
                if size >= FLUSH_BYTES:
                    yield pa.Table.from_batches(batches)
                    batches, size = [], 0
    if batches:
        yield pa.Table.from_batches(batches)


def erase_rows(
    folder: Path, topic: str, partition: int, key: bytes, gone: Callable[[Record], bool]
) -> int:
    """Writes the files anew that hold records with a key which are to go; returns how many went. A file keeps
    its name, for that says which offsets were archived."""
    erased = 0
    for held in files_of(folder, topic):
        if held.partition != partition or not _has_key(held.path, key):
            continue
        schema = pq.read_schema(held.path)
        with (
            beside(held.path) as partial,
            pq.ParquetWriter(partial, schema, compression="zstd") as file,
        ):
            for table in _row_groups([held.path]):
                columns = (table[name].to_pylist() for name in ("offset", "key", "value"))
                stays = [
                    its[1] != key or not gone(Record(*its)) for its in zip(*columns, strict=True)
                ]
                kept = table.filter(pa.array(stays))
                erased += len(table) - len(kept)
                file.write_table(kept, row_group_size=max(1, len(kept)))
    return erased


def _has_key(path: Path, key: bytes) -> bool:
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(_MERGE_ROWS, columns=["key"], use_threads=False)
        return any(
            pc.is_in(batch["key"], pa.array([key], batch["key"].type)).true_count
            for batch in batches
        )


def hour_of(path: Path) -> int:
    """The hour of a file's folder, since 1970."""
    day, hour = (part.partition("=")[2] for part in path.parts[-3:-1])
    return int(datetime.fromisoformat(f"{day}T{hour}:00+00:00").timestamp()) // 3600


def listed(paths: Iterable[Path]) -> list[Held]:
    """The archive's files among some paths, by partition and offset, of two that begin alike the longer one
    first."""
    named = ((path, _NAME.fullmatch(path.name)) for path in paths)
    found = [Held(path, *map(int, match.groups())) for path, match in named if match]
    return sorted(found, key=lambda held: (held.partition, held.first, -held.last))


def path_of(folder: Path, topic: str, hour: int, partition: int, first: int, last: int) -> Path:
    moment = datetime.fromtimestamp(hour * 3600, UTC)
    name = f"part-{partition}-{first}-{last}.parquet"
    return folder / topic / f"day={moment:%Y-%m-%d}" / f"hour={moment:%H}" / name


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Where to write a file, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    yield partial
    _publish(partial, path)


def _publish(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
