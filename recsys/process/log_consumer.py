"""What every fold does with the log: reads on from where it was, and puts aside what it can't read."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from recsys.events.dedupe import RecentIds
from recsys.events.event_types import Rejected
from recsys.events.records import DEAD_LETTERS, DeadLetter, pack, unpack
from recsys.log.protocol import Append, Log, LogLost, LogUnavailable, Record

REASON_CHARACTERS: Final = 500
LETTERS_KNOWN: Final = 100_000  # the newest letters, among which none is put twice
UNREADABLE: Final = (Rejected, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def readable(log: Log, topic: str, kind: Any) -> Iterator[Any]:
    """All records of a topic of one partition that can be read as ``kind``, in order."""
    offset = log.begin(topic, 0)
    while records := log.read(topic, 0, offset):
        for record in records:
            try:
                yield unpack(record.value, kind)
            except UNREADABLE:
                continue
        offset = records[-1].offset + 1


class Consumer:
    """Reads some partitions of a topic in turns, and remembers where it is.

    ``offsets`` are the next to read, by partition; partitions without one begin where the log does.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        partitions: Sequence[int],
        offsets: Mapping[int, int] | None = None,
    ) -> None:
        self._log, self._topic = log, topic
        given = offsets or {}
        self.offsets = {p: given.get(p, -1) for p in partitions}
        for partition, offset in self.offsets.items():
            if offset < 0:
                self.offsets[partition] = log.begin(topic, partition)

    @classmethod
    def resume(
        cls, log: Log, topic: str, saved_id: str, saved_offsets: Mapping[int, int]
    ) -> "Consumer":
        """Goes on with a saved state. Raises LogLost where the log is another one, or where it no longer has
        (or never had) what comes next: reading on would skip records in silence."""
        check_same(log, saved_id, f"a state of topic {topic!r}")
        for partition, offset in saved_offsets.items():
            log.read(topic, partition, offset, 1)
        return cls(log, topic, list(saved_offsets), saved_offsets)

    def poll(self, limit: int = 1000) -> list[tuple[int, Record]]:
        """The next records with their partition, at most ``limit`` of each partition, in order within it.

        Never waits. Raises LogLost, having moved nothing, where an offset can't be read any more.
        """
        read = {p: self._log.read(self._topic, p, at, limit) for p, at in self.offsets.items()}
        for partition, records in read.items():
            if records:
                self.offsets[partition] = records[-1].offset + 1
        return [(partition, record) for partition, records in read.items() for record in records]


def check_same(log: Log, saved_id: str, what: str) -> None:
    """Raises LogLost, saying what to do, where ``what`` was folded from a log of another id."""
    if log.id != saved_id:
        raise LogLost(
            f"{what} was folded from log {saved_id}, this one is {log.id}: the log was removed, replaced, or "
            "its broker lost it. Bring it back, or remove the state to begin with the new log"
        )


def hold_available(log: Log, name: str, topic: str, offsets: Mapping[int, int]) -> None:
    """Holds ``offsets`` by partition, or where the log begins by now: it may not be held everywhere, and
    retention may have passed a place that was noted a while ago."""
    for partition, offset in offsets.items():
        log.hold(name, topic, partition, max(offset, log.begin(topic, partition)))


class DeadLetters:
    """Puts aside what can't be read of some ``topics``, raw, with the reason: each record once.

    One part owns a topic's letters; who else reads the topic skips the record and counts it. What stands in
    ``dead_letters`` is not put again, also after a restart. ``counts`` is how many it sent, by topic.
    """

    def __init__(self, log: Log, topics: Collection[str]) -> None:
        self._log, self._topics = log, topics
        self._known: RecentIds | None = None  # read from the log when the first letter comes
        self._unsent: list[tuple[str, Append]] = []
        self.counts: Counter[str] = Counter()

    def put(
        self, topic: str, partition: int, record: Record, reason: str, time_ms: int = 0
    ) -> None:
        """Writes a letter, which ``send`` sends. ``time_ms``: event time, where there is one."""
        assert topic in self._topics, f"the dead letters of {topic!r} belong to another part"
        if self._known is None:
            self._known = self._standing()
        if not self._known.add(_place(topic, partition, record.offset)):
            return
        letter = DeadLetter(
            topic=topic,
            partition=partition,
            offset=record.offset,
            reason=reason[:REASON_CHARACTERS],
            raw=record.value,
            time_ms=time_ms,
        )
        self._unsent.append((topic, Append(0, record.key, pack(letter))))

    def send(self) -> int:
        """Appends what was put; returns how many letters that were. After LogUnavailable put them again:
        which of them the log took is then looked up."""
        unsent, self._unsent = self._unsent, []
        if not unsent:
            return 0
        try:
            self._log.append(DEAD_LETTERS, [append for _, append in unsent])
        except LogUnavailable:
            self._known = None
            raise
        self.counts.update(topic for topic, _ in unsent)
        return len(unsent)

    def forget(self) -> None:
        """Throws away what was put and not sent: it will be put again."""
        if self._unsent:
            self._unsent, self._known = [], None

    def _standing(self) -> RecentIds:
        known, end = RecentIds(LETTERS_KNOWN), self._log.end(DEAD_LETTERS, 0)
        offset = max(self._log.begin(DEAD_LETTERS, 0), end - LETTERS_KNOWN)
        # Not until a read finds nothing: a Kafka client would follow the topic from then on.
        while offset < end and (records := self._log.read(DEAD_LETTERS, 0, offset)):
            for record in records:
                try:
                    letter = unpack(record.value, DeadLetter)
                except UNREADABLE:
                    continue
                if letter.topic in self._topics:
                    known.add(_place(letter.topic, letter.partition, letter.offset))
            offset = records[-1].offset + 1
        return known


def _place(topic: str, partition: int, offset: int) -> str:
    return f"{topic}/{partition}/{offset}"
