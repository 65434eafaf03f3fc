"""Reads raw events from the files of an archive, by partition and offset or for a few users at once."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.events.event_types import Event, Impression, Rejected, decode
from recsys.events.records import EVENTS, ITEMS
from recsys.log.protocol import LogLost, Record
from training.archive.files import ArchiveFile, files_of
from training.archive.writer import archived_rows

_ROWS: Final = 2_000  # read at once
DecodedRecord = tuple[int, Event | None]  # None: the record is unreadable


class PlacedImpression(NamedTuple):
    """An impression and its place among the events."""

    partition: int
    offset: int
    impression: Impression


class ArchiveSource:
    """Reads ``events`` and ``items`` of an archive like a log, as far as rebuilding a session needs it."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError if the folder contains no archive."""
        self.folder = folder
        self._files = {topic: files_of(folder, topic) for topic in (EVENTS, ITEMS)}
        if not self._files[EVENTS]:
            raise FileNotFoundError(
                f"{folder} has no archived events: give the folder that holds events/day=…/hour=…, or a "
                "state folder whose system was up for some seconds (it archives as it goes)"
            )
        self._cache: dict[int, dict[int, Record]] = {}  # of some users, by partition and offset

    @property
    def id(self) -> str:
        id_file = self.folder / "log_id"
        return id_file.read_text() if id_file.exists() else ""

    def partitions(self, topic: str) -> int:
        return 1 + max((file.partition for file in self._files[topic]), default=0)

    def begin(self, topic: str, partition: int) -> int:
        return min((file.first for file in self._of(topic, partition)), default=0)

    def end(self, topic: str, partition: int) -> int:
        return max((file.last + 1 for file in self._of(topic, partition)), default=0)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1_000) -> list[Record]:
        """Reads like a log. Raises LogLost for offsets that aren't archived."""
        cached = self._cache.get(partition, {}) if topic == EVENTS else {}
        if limit == 1 and offset in cached:
            return [cached[offset]]
        begin, end = self.begin(topic, partition), self.end(topic, partition)
        if not begin <= offset <= end:
            raise LogLost(
                f"{topic}/{partition}: offset {offset} isn't archived in {self.folder}, which has "
                f"{begin} to {end}"
            )
        return list(islice(self.records(topic, partition, offset), limit))

    def keyed(self, topic: str, partition: int, keys: Iterable[bytes], before: int) -> list[int]:
        """Offsets of the records of some users, who were passed to ``keep``."""
        wanted = set(keys)
        cached = self._cache.get(partition, {})
        return [at for at, record in cached.items() if at < before and record.key in wanted]

    def keep(self, keys: set[bytes]) -> None:
        """Reads all events of some users into memory."""
        columns = ("partition", "offset", "key", "value")
        of_users = pc.field("key").isin(pa.array(list(keys), pa.large_binary()))
        self._cache = {}
        for partition, *record in archived_rows(self.folder, EVENTS, columns, of_users):
            self._cache.setdefault(partition, {})[record[0]] = Record(*record)

    def records(self, topic: str, partition: int, offset: int = 0) -> Iterator[Record]:
        """Yields the records of a partition from an offset on, file by file."""
        names = ["offset", "key", "value"]
        for part in self._of(topic, partition):
            if part.last < offset:
                continue
            with pq.ParquetFile(part.path) as file:
                for batch in file.iter_batches(_ROWS, columns=names):
                    for record in map(Record, *(batch[name].to_pylist() for name in names)):
                        if record.offset >= offset:
                            yield record

    def events(self, partition: int) -> Iterator[DecodedRecord]:
        """Yields all events of a partition; None for an unreadable record."""
        for record in self.records(EVENTS, partition):
            yield record.offset, _decoded(record.value)

    def impressions(self) -> Iterator[PlacedImpression]:
        """Yields the archived impressions."""
        columns, where = ("partition", "offset", "value"), pc.field("type") == "impression"
        for partition, offset, value in archived_rows(self.folder, EVENTS, columns, where):
            event = _decoded(value)
            if isinstance(event, Impression):
                yield PlacedImpression(partition, offset, event)

    def _of(self, topic: str, partition: int) -> list[ArchiveFile]:
        return [file for file in self._files[topic] if file.partition == partition]


def _decoded(value: bytes) -> Event | None:
    try:
        return decode(value)
    except Rejected:
        return None
