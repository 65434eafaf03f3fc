"""The examples of an archive, for an offline job: in event time, each once, with its labels of the end.

Event time doesn't go back within a partition: an example that closed late counts at the newest time before
it, as the archive files it. So what is learned is a range of offsets in each partition, and where it ends is
known to the offset. What is missing is found before anything is learned: files' names say which offsets they
hold, and the archive of the events says how far event time has come.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.events.hashing import digest_of, key_of
from recsys.events.records import EVENTS, EXAMPLES, unpack, unpack_all
from recsys.features.feature_set import FeatureSet
from recsys.process.log_consumer import UNREADABLE
from training.archive.files import ArchiveFile, files_of, hour_of
from training.candidates.registry import iso
from training.offline.cache import Cache, CacheWriter
from training.offline.examples import TaughtLesson

HOUR_MS: Final = 3_600_000
_COLUMNS: Final = ["partition", "offset", "time_ms", "type", "value", "user_id"]
_ALLOW: Final = "or give --allow-gaps to learn without"
_TRIES: Final = 3
P = ParamSpec("P")
R = TypeVar("R")


class Missing(ValueError):
    """Examples that should be in the archive, and aren't."""


@dataclass(frozen=True)
class Range:
    """Event time ``from_ms`` (None: from the archive's beginning) ≤ t < ``until_ms``."""

    until_ms: int
    from_ms: int | None = None

    def has_hour(self, hour: int) -> bool:
        """Whether some of an hour is in it."""
        return hour * HOUR_MS < self.until_ms and (hour + 1) * HOUR_MS > (self.from_ms or 0)


@dataclass
class _Partition:
    """How far a partition was read. ``next``: the first offset that isn't learned."""

    time_ms: int = 0
    next: int = 0
    over: bool = False


@dataclass(frozen=True)
class _Rows:
    """Examples of one partition and hour that are in the range, by offset."""

    partition: int
    offsets: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    lessons: list[TaughtLesson] = field(default_factory=list)


def _as_files_are_merged(read: Callable[P, R]) -> Callable[P, R]:
    """Lists and reads anew where a file is gone: once an hour a system that runs puts an hour's files into
    one. Raises ValueError where one stays away."""

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


@_as_files_are_merged
def cache_archive(
    archive: Path,
    folder: Path,
    features: FeatureSet,
    dense_width: int,
    horizon_ms: int,
    asked: Range,
    allow_gaps: bool = False,
) -> Cache:
    """Reads the examples of a range into a cache. Raises Missing where some aren't there and ``allow_gaps``
    is False; ValueError for examples of another feature set, or files that can't be read."""
    files = files_of(archive, EXAMPLES)
    gaps = gaps_of(archive, files, asked)
    if gaps and not allow_gaps:
        more = f" (and {len(gaps) - 1} more)" if len(gaps) > 1 else ""
        raise Missing(f"{gaps[0]}{more}")
    forgotten = _forgotten(files)
    writer = CacheWriter(folder, features, dense_width, horizon_ms, asked.until_ms)
    places = {held.partition: _Partition(next=held.first) for held in reversed(files)}
    for hour in sorted({hour_of(held.path) for held in files}):
        its = [held for held in files if hour_of(held.path) == hour]
        if not asked.has_hour(hour):
            if hour * HOUR_MS < asked.until_ms:
                _pass_over(its, places)
            continue
        parts = [
            _read(held, hour, places[held.partition], asked, forgotten, writer.counts)
            for held in its
        ]
        for lessons, time_ms in _in_time(parts):
            writer.add(lessons, time_ms)
    return writer.close(
        asked.from_ms,
        (archive / "log_id").read_text(),
        {partition: place.next for partition, place in sorted(places.items())},
        sorted({key_of("user", user) for _, user in forgotten}),
        gaps,
    )


@_as_files_are_merged
def fingerprint(archive: Path, asked: Range) -> str:
    """What a range of an archive holds and whom it has to forget. Merging its files changes nothing of it,
    nor does what comes after the range."""
    files = files_of(archive, EXAMPLES)
    spans: list[list[int]] = []
    for held in files:
        if not asked.has_hour(hour_of(held.path)):
            continue
        open_hour = (hour_of(held.path) + 1) * HOUR_MS > asked.until_ms
        if spans and spans[-1][0] == held.partition and spans[-1][2] == held.first - 1:
            spans[-1][2] = -1 if open_hour else held.last
        else:
            spans.append([held.partition, held.first, -1 if open_hour else held.last])
    forgotten = sorted((*place, offset) for place, offset in _forgotten(files).items())
    return digest_of(repr((archive.resolve().as_posix(), asked, spans, forgotten)))


def gaps_of(archive: Path, files: Sequence[ArchiveFile], asked: Range) -> list[str]:
    """What is missing of a range, in words, each with the remedy."""
    if not files:
        return [
            f"{archive} holds no examples: give the archive of a system that has learned, {_ALLOW}"
        ]
    return [
        *_before(archive, files, asked),
        *_holes(files, asked),
        *_empty_days(archive, asked),
        *_after(archive, files, asked),
    ]


def _before(archive: Path, files: Sequence[ArchiveFile], asked: Range) -> Iterator[str]:
    first = min(hour_of(held.path) for held in files)
    if asked.from_ms is not None and first * HOUR_MS > asked.from_ms:
        yield (
            f"{archive} begins at {iso(first * HOUR_MS)}, after --from {iso(asked.from_ms)}: give a later "
            f"--from, {_ALLOW}"
        )


def _holes(files: Sequence[ArchiveFile], asked: Range) -> Iterator[str]:
    """Between two files of a partition, where what should lie between may be in the range."""
    for a, b in pairwise(files):
        if a.partition != b.partition or b.first == a.last + 1:
            continue
        last = (hour_of(b.path) + 1) * HOUR_MS
        if _last_ms(a) < asked.until_ms and last > (asked.from_ms or 0):
            yield (
                f"examples {a.last + 1} to {b.first - 1} of partition {a.partition} are missing, between "
                f"{'/'.join(a.path.parts[-3:])} and {'/'.join(b.path.parts[-3:])}: bring the files back, "
                f"choose a range without them (--from, --until), {_ALLOW}"
            )


def _empty_days(archive: Path, asked: Range) -> Iterator[str]:
    for folder in sorted((archive / EXAMPLES).glob("day=*")):
        day = np.datetime64(folder.name.partition("=")[2], "ms").astype(int)
        inside = day < asked.until_ms and day + 24 * HOUR_MS > (asked.from_ms or 0)
        if inside and not any(folder.glob("hour=*/part-*.parquet")):
            yield f"{folder} has no files: bring them back, choose a range without that day, {_ALLOW}"


def _after(archive: Path, files: Sequence[ArchiveFile], asked: Range) -> Iterator[str]:
    end = end_of(archive, files)
    if end < asked.until_ms:
        yield (
            f"{archive} ends at {iso(end)}, before --until {iso(asked.until_ms)}: wait until it is written, "
            f"give an earlier --until, {_ALLOW}"
        )


@_as_files_are_merged
def end_of(archive: Path, files: Sequence[ArchiveFile]) -> int:
    """How far event time has come in the archive, milliseconds: in all partitions of the events, of which
    idle ones tick; or in any of the examples, where no events are archived."""
    newest = {held.partition: held for held in files_of(archive, EVENTS)}
    if newest:
        return min(_last_ms(held) for held in newest.values())
    newest = {held.partition: held for held in files}
    return max((_last_ms(held) for held in newest.values()), default=0)


@_as_files_are_merged
def newest(archive: Path) -> int:
    """The end of what is archived so far, milliseconds, in whole seconds: no later than the second of the
    newest example, for where nothing came after it there is nothing to hold out."""
    files = files_of(archive, EXAMPLES)
    last = max(
        (_last_ms(held) for held in {held.partition: held for held in files}.values()), default=0
    )
    return min(end_of(archive, files) // 1000, last // 1000 + 1) * 1000


def _last_ms(held: ArchiveFile) -> int:
    times = _table(held.path, ["time_ms"]).column("time_ms").to_numpy()
    return int(times.max()) if len(times) else hour_of(held.path) * HOUR_MS


def _forgotten(files: Sequence[ArchiveFile]) -> dict[tuple[int, str], int]:
    """The offset before which nothing of a user may be learned, by (partition, user). It counts whenever it
    was asked for: also after the range."""
    found: dict[tuple[int, str], int] = {}
    for held in files:
        for row in _forgets(held):
            found[held.partition, str(row["user_id"])] = int(row["offset"])
    return found


def _forgets(held: ArchiveFile) -> list[dict[str, Any]]:
    table = _table(held.path, ["offset", "type", "user_id"])
    rows: list[dict[str, Any]] = table.filter(pc.equal(table["type"], "forget")).to_pylist()
    return rows


def _pass_over(files: Sequence[ArchiveFile], places: dict[int, _Partition]) -> None:
    """What is before the range isn't learned, and nobody has to learn it after."""
    for held in files:
        places[held.partition].next = held.last + 1
        places[held.partition].time_ms = hour_of(held.path) * HOUR_MS


def _read(
    held: ArchiveFile,
    hour: int,
    place: _Partition,
    asked: Range,
    forgotten: dict[tuple[int, str], int],
    counts: Counter[str],
) -> _Rows:
    """The examples of a file that are in the range."""
    none = np.empty(0, np.int64)
    if place.over:
        return _Rows(held.partition, none, none)
    table = _table(held.path, _COLUMNS)
    offsets = table.column("offset").to_numpy()
    times = np.maximum(table.column("time_ms").to_numpy(), max(place.time_ms, hour * HOUR_MS))
    times = np.maximum.accumulate(times)
    stop = int(np.searchsorted(times, asked.until_ms))
    place.over = stop < len(offsets)
    place.next = int(offsets[stop]) if place.over else held.last + 1
    place.time_ms = int(times[-1]) if len(times) else place.time_ms
    start = int(np.searchsorted(times, asked.from_ms or 0))
    kinds = np.array(table.column("type").to_pylist(), object)[start:stop]
    counts.update({str(kind): int((kinds == kind).sum()) for kind in set(kinds) - {"example"}})
    at = start + np.flatnonzero(kinds == "example")
    if forgotten:
        users = table.column("user_id").take(pa.array(at)).to_pylist()
        ends = [forgotten.get((held.partition, str(user)), -1) for user in users]
        counts["of_forgotten"] += int((offsets[at] < ends).sum())
        at = at[offsets[at] >= ends]
    values = table.column("value").take(pa.array(at)).to_pylist()
    lessons, well = _decoded(values)
    counts["unreadable"] += len(values) - len(lessons)
    return _Rows(held.partition, offsets[at][well], times[at][well], lessons)


def _decoded(values: Sequence[bytes]) -> tuple[list[TaughtLesson], NDArray[np.bool_]]:
    """Examples, and which of the values they are."""
    try:
        return unpack_all(values, TaughtLesson), np.ones(len(values), np.bool_)
    except UNREADABLE:
        pass
    lessons, well = list[TaughtLesson](), np.zeros(len(values), np.bool_)
    for number, value in enumerate(values):
        try:
            lessons.append(unpack(value, TaughtLesson))
            well[number] = True
        except UNREADABLE:
            continue
    return lessons, well


def _in_time(parts: Sequence[_Rows]) -> Iterator[tuple[list[TaughtLesson], list[int]]]:
    """All partitions' examples of an hour by (time, partition, offset)."""
    lessons = [lesson for part in parts for lesson in part.lessons]
    if not lessons:
        return
    time_ms = np.concatenate([part.time_ms for part in parts])
    offsets = np.concatenate([part.offsets for part in parts])
    partitions = np.repeat([part.partition for part in parts], [len(p.lessons) for p in parts])
    order = np.lexsort((offsets, partitions, time_ms))
    yield [lessons[at] for at in order], time_ms[order].tolist()


def _table(path: Path, columns: list[str]) -> pa.Table:
    """Columns of a file. Raises FileNotFoundError where it is gone, ValueError where it can't be read."""
    try:
        return pq.read_table(path, columns=columns, partitioning=None)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} can't be read: {error}; bring it back from a backup, or choose a range without its hour"
        ) from None
