"""A log with its archived events before it, for folds of all events: whatever retention has dropped from the
log is read from the archive."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from recsys.events.records import EVENTS
from recsys.log.protocol import Log, LogLost, Record
from recsys.process.log_consumer import hold_available
from training.archive.raw_events import ArchiveSource


def whole_log(log: Log, state: Path | str) -> Log:
    """The log of a state folder, with ``events`` from its archive on."""
    return cast(Log, _WholeLog(log, Path(state) / "archive"))


class _WholeLog:
    def __init__(self, log: Log, folder: Path) -> None:
        self._log, self._folder = log, folder
        self._archive: ArchiveSource | None = None
        self._next: dict[int, tuple[int, Iterator[Record]]] = {}  # offset and records, by partition

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def begin(self, topic: str, partition: int) -> int:
        begin = self._log.begin(topic, partition)
        archive = self._source(partition, begin) if topic == EVENTS and begin else None
        return begin if archive is None else archive.begin(topic, partition)

    def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
        """Holds what of the log is after the offset: the archive needs no hold."""
        hold_available(self._log, name, topic, {partition: offset})

    def read(self, topic: str, partition: int, offset: int, limit: int = 1_000) -> list[Record]:
        try:
            return self._log.read(topic, partition, offset, limit)
        except LogLost:  # most often retention has dropped it
            begin = self._log.begin(topic, partition)
            archive = self._source(partition, begin) if topic == EVENTS and offset < begin else None
            if archive is None:
                raise
        at, records = self._next.get(partition, (-1, iter(())))
        if at != offset:
            records = archive.records(topic, partition, offset)
        read = [record for record in islice(records, limit) if record.offset < begin]
        if not read:
            return self._log.read(topic, partition, begin, limit)
        self._next[partition] = (read[-1].offset + 1, records)
        return read

    def _source(self, partition: int, begin: int) -> ArchiveSource | None:
        """The archive, if it reaches up to the log's beginning."""
        if self._archive is None or self._archive.end(EVENTS, partition) < begin:
            self._archive = ArchiveSource(self._folder)  # it has grown
        return self._archive if self._archive.end(EVENTS, partition) >= begin else None
