"""Reads the examples of an archive for an offline job: in event time, each once, with its final labels.

Event time is non-decreasing within a partition: an example that closed late counts at the newest time before
it. So a range of event time is a range of offsets in each partition. Gaps are reported before anything is
learned.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.events.hashing import digest_of, key_of
from recsys.events.records import EVENTS, EXAMPLES, unpack, unpack_all
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE
from training.archive.digest import read_table
from training.archive.files import ArchiveFile, files_of, hour_of
from training.archive.left_out import COLUMNS, LeftOut
from training.candidates.registry import iso
from training.offline.cache import Cache, CacheWriter
from training.offline.examples import OfflineExample

HOUR_MS: Final = 3_600_000
_COLUMNS: Final = ["partition", "offset", "type", "value", *COLUMNS]
_ALLOW: Final = "or give --allow-gaps to learn without"
_TRIES: Final = 3
P = ParamSpec("P")
R = TypeVar("R")


class MissingExamples(ValueError):
    """Examples that should be in the archive, and aren't."""


@dataclass(frozen=True)
class Range:  # its repr is part of a digest
    """Event time ``from_ms`` (None: from the archive's beginning) ≤ t < ``until_ms``."""

    until_ms: int
    from_ms: int | None = None

    def overlaps(self, start_ms: int, stop_ms: int) -> bool:
        return start_ms < self.until_ms and stop_ms > (self.from_ms or 0)

    def has_hour(self, hour: int) -> bool:
        return self.overlaps(hour * HOUR_MS, (hour + 1) * HOUR_MS)


@dataclass
class _Progress:
    """Progress in a partition. ``next``: the first offset that isn't learned."""

    time_ms: int = 0
    next: int = 0
    over: bool = False


@dataclass(frozen=True)
class _Rows:
    """Examples of one partition and hour that are in the range, by offset."""

    partition: int
    offsets: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    examples: list[OfflineExample] = field(default_factory=list)


def _retrying_merged_files(read: Callable[P, R]) -> Callable[P, R]:
    """Reads again if a file is gone: a running system merges files. Raises ValueError if it stays away."""

    @wraps(read)
    def again(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(_TRIES):
            try:
                return read(*args, **kwargs)
            except FileNotFoundError as error:
                gone = error
        raise ValueError(f"a file of the archive is gone: {gone}") from None

    return again


def is_archive(folder: Path) -> bool:
    """Whether a folder is an archive, and not a data set."""
    return (folder / "log_id").is_file()


@_retrying_merged_files
def cache_archive(
    archive: Path, folder: Path, features: FeatureSet, dense_width: int, horizon_ms: int,
    asked: Range, allow_gaps: bool = False, log: Log | None = None,
) -> Cache:  # fmt: skip
    """Reads the examples of a range into a cache. Raises MissingExamples for gaps unless ``allow_gaps``;
    ValueError for examples of another feature set, or unreadable files. ``log``: names other sets, whose
    examples are read where they have all features."""
    files = files_of(archive, EXAMPLES)
    gaps = gaps_of(archive, files, asked)
    if gaps and not allow_gaps:
        more = f" (and {len(gaps) - 1} more)" if len(gaps) > 1 else ""
        raise MissingExamples(f"{gaps[0]}{more}")
    left_out = LeftOut.read(files, read_table)
    writer = CacheWriter(folder, features, dense_width, horizon_ms, asked.until_ms, log)
    progress = {file.partition: _Progress(next=file.first) for file in reversed(files)}
    by_hour = sorted(files, key=lambda file: hour_of(file.path))
    for hour, hour_files in groupby(by_hour, key=lambda file: hour_of(file.path)):
        if asked.has_hour(hour):
            about = (asked, left_out, writer.counts)
            parts = [_read(file, hour, progress[file.partition], *about) for file in hour_files]
            _write_in_time(parts, writer)
        elif hour * HOUR_MS < asked.until_ms:  # before the range: not to be learned later either
            for file in hour_files:
                progress[file.partition].next = file.last + 1
                progress[file.partition].time_ms = hour * HOUR_MS
    return writer.close(
        asked.from_ms,
        (archive / "log_id").read_text(),
        {partition: state.next for partition, state in sorted(progress.items())},
        sorted({key_of("user", user) for _, user in left_out.forgotten}),
        gaps,
    )


@_retrying_merged_files
def fingerprint(archive: Path, asked: Range) -> str:
    """Digest of a range's offsets and of the marks of what is left out. Neither merging files changes it, nor
    what is written after the range to its last hour."""
    files = files_of(archive, EXAMPLES)
    spans: list[list[int]] = []
    before = (-1, -1)  # partition and last offset of the file before
    for file in files:
        hour = hour_of(file.path)
        if not asked.has_hour(hour):
            continue
        last = -1 if (hour + 1) * HOUR_MS > asked.until_ms else file.last
        if before == (file.partition, file.first - 1):
            spans[-1][2] = last
        else:
            spans.append([file.partition, file.first, last])
        before = file.partition, file.last
    marks = LeftOut.read(files, read_table).marks()
    return digest_of(repr((archive.resolve().as_posix(), asked, spans, marks)))


def gaps_of(archive: Path, files: Sequence[ArchiveFile], asked: Range) -> list[str]:
    """Describes the gaps of a range, each with the remedy."""
    if not files:
        return [f"{archive} holds no examples: give the archive of a system that has learned, {_ALLOW}"]
    return [
        *_before(archive, files, asked),
        *_holes(files, asked),
        *_empty_days(archive, asked),
        *_after(archive, files, asked),
    ]


def _before(archive: Path, files: Sequence[ArchiveFile], asked: Range) -> Iterator[str]:
    first_ms = min(hour_of(file.path) for file in files) * HOUR_MS
    if asked.from_ms is not None and first_ms > asked.from_ms:
        yield (
            f"{archive} begins at {iso(first_ms)}, after --from {iso(asked.from_ms)}: give a later "
            f"--from, {_ALLOW}"
        )


def _holes(files: Sequence[ArchiveFile], asked: Range) -> Iterator[str]:
    """Gaps between two files of a partition that may be in the range."""
    for a, b in pairwise(files):
        if a.partition != b.partition or b.first == a.last + 1:
            continue
        if asked.overlaps(_last_ms(a), (hour_of(b.path) + 1) * HOUR_MS):
            yield (
                f"examples {a.last + 1} to {b.first - 1} of partition {a.partition} are missing, between "
                f"{'/'.join(a.path.parts[-3:])} and {'/'.join(b.path.parts[-3:])}: bring the files back, "
                f"choose a range without them (--from, --until), {_ALLOW}"
            )


def _empty_days(archive: Path, asked: Range) -> Iterator[str]:
    for folder in sorted((archive / EXAMPLES).glob("day=*")):
        day = np.datetime64(folder.name.partition("=")[2], "ms").astype(int)
        inside = asked.overlaps(day, day + 24 * HOUR_MS)
        if inside and not any(folder.glob("hour=*/part-*.parquet")):
            yield f"{folder} has no files: bring them back, choose a range without that day, {_ALLOW}"


def _after(archive: Path, files: Sequence[ArchiveFile], asked: Range) -> Iterator[str]:
    end_ms = end_of(archive, files)
    if end_ms < asked.until_ms:
        yield (
            f"{archive} ends at {iso(end_ms)}, before --until {iso(asked.until_ms)}: wait until it is "
            f"written, give an earlier --until, {_ALLOW}"
        )


@_retrying_merged_files
def end_of(archive: Path, files: Sequence[ArchiveFile]) -> int:
    """Event time reached by the archive, milliseconds: the minimum over all partitions of the events, of
    which idle ones tick; or the maximum over those of the examples, if no events are archived."""
    if last_events := _last_by_partition(files_of(archive, EVENTS)):
        return min(last_events)
    return max(_last_by_partition(files), default=0)


@_retrying_merged_files
def newest(archive: Path) -> int:
    """End of the archive, milliseconds, in whole seconds: no later than the second of the newest example,
    since a range that ends without examples has nothing to hold out."""
    files = files_of(archive, EXAMPLES)
    last_ms = max(_last_by_partition(files), default=0)
    return min(end_of(archive, files) // 1000, last_ms // 1000 + 1) * 1000


def _last_by_partition(files: Sequence[ArchiveFile]) -> list[int]:
    return [_last_ms(file) for file in {file.partition: file for file in files}.values()]


def _last_ms(file: ArchiveFile) -> int:
    times = read_table(file.path, ["time_ms"]).column("time_ms").to_numpy()
    return int(times.max()) if len(times) else hour_of(file.path) * HOUR_MS


def _read(
    file: ArchiveFile, hour: int, progress: _Progress, asked: Range, left_out: LeftOut, counts: Counter[str]
) -> _Rows:
    """The examples of a file that are in the range."""
    if progress.over:
        none = np.empty(0, np.int64)
        return _Rows(file.partition, none, none)
    table = read_table(file.path, _COLUMNS)
    offsets = table.column("offset").to_numpy()
    times = np.maximum(table.column("time_ms").to_numpy(), max(progress.time_ms, hour * HOUR_MS))
    times = np.maximum.accumulate(times)
    stop = int(np.searchsorted(times, asked.until_ms))
    progress.over = stop < len(offsets)
    progress.next = int(offsets[stop]) if progress.over else file.last + 1
    progress.time_ms = int(times[-1]) if len(times) else progress.time_ms
    start = int(np.searchsorted(times, asked.from_ms or 0))
    kinds = np.array(table.column("type").to_pylist(), object)[start:stop]
    counts.update({str(kind): int((kinds == kind).sum()) for kind in set(kinds) - {"example"}})
    at = start + np.flatnonzero(kinds == "example")
    learnable = left_out.learnable(file.partition, offsets[at], table.take(pa.array(at)))
    if not learnable.all():
        counts["left_out"] += int((~learnable).sum())
        at = at[learnable]
    values = table.column("value").take(pa.array(at)).to_pylist()
    examples, readable = _decoded(values)
    counts["unreadable"] += len(values) - len(examples)
    return _Rows(file.partition, offsets[at][readable], times[at][readable], examples)


def _decoded(values: Sequence[bytes]) -> tuple[list[OfflineExample], NDArray[np.bool_]]:
    """Decoded examples, and which of the values are readable."""
    try:
        return unpack_all(values, OfflineExample), np.ones(len(values), np.bool_)
    except UNREADABLE:
        pass
    examples, readable = list[OfflineExample](), np.zeros(len(values), np.bool_)
    for number, value in enumerate(values):
        try:
            examples.append(unpack(value, OfflineExample))
            readable[number] = True
        except UNREADABLE:
            continue
    return examples, readable


def _write_in_time(parts: Sequence[_Rows], writer: CacheWriter) -> None:
    """Writes all partitions' examples of an hour by (time, partition, offset)."""
    examples = [example for part in parts for example in part.examples]
    if not examples:
        return
    time_ms = np.concatenate([part.time_ms for part in parts])
    offsets = np.concatenate([part.offsets for part in parts])
    partitions = np.repeat([part.partition for part in parts], [len(p.examples) for p in parts])
    order = np.lexsort((offsets, partitions, time_ms))
    writer.add([examples[at] for at in order], time_ms[order].tolist())
