"""Reads events and items from the files of an archive, by partition and offset."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from recsys.events.records import EVENTS, ITEMS
from recsys.log.protocol import Record
from training.archive.digest import read_batches
from training.archive.files import ArchiveFile, files_of

_ROWS: Final = 2_000  # read at once


class ArchiveSource:
    """Reads ``events`` and ``items`` of an archive in the order of the log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._list()

    def begin(self, topic: str, partition: int) -> int:
        return min((file.first for file in self._of(topic, partition)), default=0)

    def end(self, topic: str, partition: int) -> int:
        return max((file.last + 1 for file in self._of(topic, partition)), default=0)

    def records(self, topic: str, partition: int, offset: int = 0) -> Iterator[Record]:
        """Yields the records of a partition from an offset on, file by file."""
        names = ["offset", "key", "value"]
        while left := [part for part in self._of(topic, partition) if part.last >= offset]:
            batches = read_batches(left[0].path, _ROWS, names)
            try:
                first = next(batches, None)
            except FileNotFoundError:  # the archive has merged or dropped files since
                self._list()
                continue
            for batch in chain([] if first is None else [first], batches):
                for record in map(Record, *(batch[name].to_pylist() for name in names)):
                    if record.offset >= offset:
                        yield record
            offset = left[0].last + 1

    def _list(self) -> None:
        self._files = {topic: files_of(self.folder, topic) for topic in (EVENTS, ITEMS)}

    def _of(self, topic: str, partition: int) -> list[ArchiveFile]:
        return [file for file in self._files[topic] if file.partition == partition]
