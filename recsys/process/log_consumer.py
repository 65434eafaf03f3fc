"""Log consumer of folds: reads on from saved offsets, and sends unreadable records to the dead letters."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from recsys.events.dedupe import RecentIds
from recsys.events.event_types import Rejected
from recsys.events.records import DEAD_LETTERS, DeadLetter, pack, unpack
from recsys.log.protocol import Append, Log, LogLost, LogUnavailable, Record, read_range

REASON_CHARACTERS: Final = 500
LETTERS_KNOWN: Final = 100_000  # newest letters, checked for duplicates
UNREADABLE: Final = (Rejected, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def decoded(records: Iterable[Record], kind: Any) -> Iterator[tuple[Record, Any]]:
    """The records that can be read as ``kind``, each with its value."""
    for record in records:
        try:
            value = unpack(record.value, kind)
        except UNREADABLE:
            continue
        yield record, value


def readable(log: Log, topic: str, kind: Any) -> Iterator[Any]:
    """All records of a single-partition topic that can be read as ``kind``, in order."""
    records = read_range(log, topic, 0, log.begin(topic, 0), 1 << 62)
    return (value for _, value in decoded(records, kind))


class Consumer:
    """Reads some partitions of a topic in turn. ``offsets``: the next to read, by partition; by default the
    beginning of the log."""

    def __init__(
        self, log: Log, topic: str, partitions: Sequence[int], offsets: Mapping[int, int] | None = None
    ) -> None:
        self._log, self._topic = log, topic
        start = offsets or {}
        self.offsets = {p: start.get(p, -1) for p in partitions}
        for partition, offset in self.offsets.items():
            if offset < 0:
                self.offsets[partition] = log.begin(topic, partition)

    def poll(self, limit: int = 1000) -> list[tuple[int, Record]]:
        """The next records with their partition, at most ``limit`` per partition, in order within it. Never
        waits. Raises LogLost, without advancing, if an offset can't be read any more."""
        read = {p: self._log.read(self._topic, p, at, limit) for p, at in self.offsets.items()}
        for partition, records in read.items():
            if records:
                self.offsets[partition] = records[-1].offset + 1
        return [(partition, record) for partition, records in read.items() for record in records]

    def drain(self, limit: int = 1000) -> Iterator[Record]:
        """The next records until none is left, read ``limit`` at a time as ``poll`` does."""
        while records := self.poll(limit):
            yield from (record for _, record in records)


def check_same(log: Log, saved_id: str, what: str) -> None:
    """Raises LogLost, with the remedy, if ``what`` was folded from a log with another id."""
    if log.id != saved_id:
        raise LogLost(
            f"{what} was folded from log {saved_id}, this one is {log.id}: the log was removed, replaced, or "
            "its broker lost it. Bring it back, or remove the state to begin with the new log"
        )


def hold_available(log: Log, name: str, topic: str, offsets: Mapping[int, int]) -> dict[int, int]:
    """Holds ``offsets`` by partition, or the log's beginning if retention has passed one; returns what it
    holds. Raises LogLost beyond the end."""
    held = {p: max(offset, log.begin(topic, p)) for p, offset in offsets.items()}
    for partition, offset in held.items():
        try:
            log.hold(name, topic, partition, offset)
        except LogLost:
            if log.begin(topic, partition) <= offset:
                raise
            # Retention, in another process, has passed it since.
            held |= hold_available(log, name, topic, {partition: offset})
    return held


class DeadLetters:
    """Sends unreadable records of some ``topics`` to ``dead_letters``, raw, with the reason: each record
    once, also across restarts. One part owns a topic's letters. ``counts``: letters sent by topic."""

    def __init__(self, log: Log, topics: Collection[str]) -> None:
        self._log, self._topics = log, topics
        self._written: RecentIds | None = None  # read from the log with the first letter
        self._unsent: list[tuple[str, Append]] = []
        self.counts: Counter[str] = Counter()

    def put(self, topic: str, partition: int, record: Record, why: str, time_ms: int = 0) -> None:
        """Queues a letter for ``send``. ``time_ms``: event time, if known."""
        assert topic in self._topics, f"the dead letters of {topic!r} belong to another part"
        if self._written is None:
            self._written = self._read_written()
        if not self._written.add(_place(topic, partition, record.offset)):
            return
        letter = DeadLetter(
            topic=topic, partition=partition, offset=record.offset, time_ms=time_ms,
            reason=why[:REASON_CHARACTERS], raw=record.value,
        )  # fmt: skip
        self._unsent.append((topic, Append(0, record.key, pack(letter))))

    def send(self) -> int:
        """Appends the queued letters; returns their number. After LogUnavailable put them again: the log is
        then searched for those that were written."""
        unsent, self._unsent = self._unsent, []
        if not unsent:
            return 0
        try:
            self._log.append(DEAD_LETTERS, [append for _, append in unsent])
        except LogUnavailable:
            self._written = None
            raise
        self.counts.update(topic for topic, _ in unsent)
        return len(unsent)

    def forget(self) -> None:
        """Drops queued letters: they will be put again."""
        if self._unsent:
            self._unsent, self._written = [], None

    def _read_written(self) -> RecentIds:
        written, end = RecentIds(LETTERS_KNOWN), self._log.end(DEAD_LETTERS, 0)
        offset = max(self._log.begin(DEAD_LETTERS, 0), end - LETTERS_KNOWN)
        # Stops at the end: after an empty read a Kafka client would follow the topic.
        records = read_range(self._log, DEAD_LETTERS, 0, offset, end)
        for _, letter in decoded(records, DeadLetter):
            if letter.topic in self._topics:
                written.add(_place(letter.topic, letter.partition, letter.offset))
        return written


def _place(topic: str, partition: int, offset: int) -> str:
    return f"{topic}/{partition}/{offset}"
