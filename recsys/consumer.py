"""What every fold does with the log: reads on from where it was, and puts aside what it can't read."""

from collections import Counter
from collections.abc import Mapping, Sequence

from recsys.log import Append, Log, LogLost, Record
from recsys.records import DEAD_LETTERS, DeadLetter, pack

REASON_CHARACTERS = 500


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


class DeadLetters:
    """Puts aside what can't be read, raw, with the reason. ``counts`` is how many, by topic.

    A fold that is restarted before its snapshot may put the same record again: (topic, partition, offset) is
    the letter's id.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self.counts: Counter[str] = Counter()

    def put(
        self, topic: str, partition: int, record: Record, reason: str, time_ms: int = 0
    ) -> None:
        letter = DeadLetter(
            topic=topic,
            partition=partition,
            offset=record.offset,
            reason=reason[:REASON_CHARACTERS],
            raw=record.value,
            time_ms=time_ms,
        )
        self._log.append(DEAD_LETTERS, [Append(0, record.key, pack(letter))])
        self.counts[topic] += 1
