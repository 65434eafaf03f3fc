"""Removes the oldest hours of the archive, by bytes and by age. The catalogue (``items``) stays whole."""

from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Final

from recsys.events.records import EVENTS, EXAMPLES
from training.archive.files import ArchiveFile, hour_of, listed

TOPICS: Final = (EVENTS, EXAMPLES)


def drop_oldest(folder: Path, most_bytes: int | None, days: int = 0) -> int:
    """Removes files of the oldest hours until the archive has at most ``most_bytes`` on the disk, and those
    ``days`` older than its newest hour; returns their number. The newest file of each partition stays: it
    says where to resume. None, 0: without limit. Only the archive's writer may call this."""
    by_hour, newest = defaultdict[int, list[ArchiveFile]](list), set[Path]()
    for topic in TOPICS:
        files = listed((folder / topic).glob("day=*/hour=*/*"))
        newest |= {file.path for file in {file.partition: file for file in files}.values()}
        for file in files:
            by_hour[hour_of(file.path)].append(file)
    size = sum(map(_bytes, folder.rglob("*.parquet"))) if most_bytes is not None else 0
    oldest, dropped = max(by_hour, default=0) - 24 * days, 0
    for hour in sorted(by_hour):
        if not (days and hour < oldest) and (most_bytes is None or size <= most_bytes):
            break
        for file in by_hour[hour]:
            if file.path not in newest:
                size -= _bytes(file.path)
                file.path.unlink()
                dropped += 1
        for path in {file.path.parent for file in by_hour[hour]}:
            with suppress(OSError):  # not empty
                path.rmdir()
                path.parent.rmdir()
    return dropped


def _bytes(path: Path) -> int:
    return path.lstat().st_blocks * 512
