"""An archive as a source of raw events: by partition and offset, and for a few users at once.

Reads what training/archive/writer.py wrote; nothing else need be there of the system that wrote it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq

from recsys.events.event_types import Event, Impression, Item, Rejected, decode
from recsys.events.records import EVENTS, ITEMS
from recsys.features.feature_set import FeatureSet
from recsys.log.protocol import LogLost, Record
from training.archive.files import Held, files_of
from training.archive.recompute import ItemHistory, Read, Shown
from training.archive.writer import read_archive

_ROWS: Final = 2_000  # read at once


class ArchiveSource:
    """The archive in a folder. It has what is asked of a log by who makes a past session again: ``begin``,
    ``end``, ``read``, ``keyed`` and ``partitions``, for ``events`` and ``items``."""

    def __init__(self, folder: Path) -> None:
        """Raises FileNotFoundError where there is no archive."""
        self.folder = folder
        self._files = {topic: files_of(folder, topic) for topic in (EVENTS, ITEMS)}
        if not self._files[EVENTS]:
            raise FileNotFoundError(
                f"{folder} has no archived events: give the folder that holds events/day=…/hour=…, or a "
                "state folder whose system was up for some seconds (it archives as it goes)"
            )
        self._kept: dict[
            int, dict[int, Record]
        ] = {}  # by partition and offset: records of some users

    @property
    def id(self) -> str:
        about = self.folder / "log_id"
        return about.read_text() if about.exists() else ""

    def partitions(self, topic: str) -> int:
        return 1 + max((held.partition for held in self._files[topic]), default=0)

    def begin(self, topic: str, partition: int) -> int:
        return min((held.first for held in self._of(topic, partition)), default=0)

    def end(self, topic: str, partition: int) -> int:
        return max((held.last + 1 for held in self._of(topic, partition)), default=0)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1_000) -> list[Record]:
        """As a log reads. Raises LogLost for what isn't archived."""
        kept = self._kept.get(partition, {}) if topic == EVENTS else {}
        if limit == 1 and offset in kept:
            return [kept[offset]]
        if not self.begin(topic, partition) <= offset <= self.end(topic, partition):
            raise LogLost(
                f"{topic}/{partition}: offset {offset} isn't archived in {self.folder}, which has "
                f"{self.begin(topic, partition)} to {self.end(topic, partition)}"
            )
        found = []
        for record in self.records(topic, partition, offset):
            found.append(record)
            if len(found) == limit:
                break
        return found

    def keyed(self, topic: str, partition: int, keys: Iterable[bytes], before: int) -> list[int]:
        """Offsets of the records of users that were asked for by ``keep``."""
        wanted = set(keys)
        kept = self._kept.get(partition, {})
        return [at for at, record in kept.items() if at < before and record.key in wanted]

    def keep(self, keys: set[bytes]) -> None:
        """Reads all events of some users into memory."""
        its = pl.col("key").is_in(list(keys))
        columns = ("partition", "offset", "key", "value")
        frame = read_archive(self.folder, EVENTS).filter(its).select(columns).collect()
        self._kept = {}
        for partition, *record in frame.sort("partition", "offset").iter_rows():
            self._kept.setdefault(partition, {})[record[0]] = Record(*record)

    def records(self, topic: str, partition: int, offset: int = 0) -> Iterator[Record]:
        """The records of a partition from an offset on, file by file."""
        for held in self._of(topic, partition):
            if held.last < offset:
                continue
            with pq.ParquetFile(held.path) as file:
                for batch in file.iter_batches(_ROWS, columns=["offset", "key", "value"]):
                    columns = (batch[name].to_pylist() for name in ("offset", "key", "value"))
                    for record in map(Record, *columns):
                        if record.offset >= offset:
                            yield record

    def events(self, partition: int) -> Iterator[Read]:
        """All events of a partition; None where a record can't be read."""
        for record in self.records(EVENTS, partition):
            yield record.offset, _decoded(record.value)

    def items(self, features: FeatureSet) -> ItemHistory:
        """All versions of all items."""
        history = ItemHistory(features)
        for record in self.records(ITEMS, 0):
            event = _decoded(record.value)
            if isinstance(event, Item):
                history.take(record.offset, event)
        history.end = max(history.end, self.end(ITEMS, 0))
        return history

    def impressions(self, where: pl.Expr | None = None) -> Iterator[Shown]:
        """The archived impressions that an expression over the archive's columns holds for (all, without)."""
        its = pl.col("type") == "impression"
        frame = read_archive(self.folder, EVENTS).filter(its if where is None else its & where)
        for partition, offset, value in (
            frame.select("partition", "offset", "value").collect().iter_rows()
        ):
            event = _decoded(value)
            if isinstance(event, Impression):
                yield Shown(partition, offset, event)

    def _of(self, topic: str, partition: int) -> Sequence[Held]:
        return [held for held in self._files[topic] if held.partition == partition]


def _decoded(value: bytes) -> Event | None:
    try:
        return decode(value)
    except Rejected:
        return None
