"""An archive read like a log, as far as rebuilding sessions and counters needs it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recsys.events.event_types import Event, Impression, Rejected, decode
from recsys.events.records import EVENTS
from recsys.log.protocol import LogLost, Record
from training.archive.raw_events import ArchiveSource
from training.archive.writer import archived_rows

DecodedRecord = tuple[int, Event | None]  # None: the record is unreadable


class PlacedImpression(NamedTuple):
    """An impression and its place among the events."""

    partition: int
    offset: int
    impression: Impression


class AuditSource(ArchiveSource):
    """Reads ``events`` and ``items`` of an archive like a log, and those of a few users at once."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError if the folder contains no archive."""
        super().__init__(folder)
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


def _decoded(value: bytes) -> Event | None:
    try:
        return decode(value)
    except Rejected:
        return None
