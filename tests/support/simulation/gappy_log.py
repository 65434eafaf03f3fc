"""A log as one on Kafka may look: offsets with gaps, and reads that give fewer records than there are."""

from collections.abc import Sequence

from recsys.log.protocol import Append, MemoryLog, Record


class GappyLog:
    """A log in memory whose n-th record (from 0) has offset ``FIRST + GAP * n``; one read gives two."""

    FIRST, GAP, MOST = 3, 7, 2

    def __init__(self, inner: MemoryLog | None = None) -> None:
        self.inner = inner or MemoryLog()
        self.create, self.partitions = self.inner.create, self.inner.partitions

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        return [self.FIRST + self.GAP * n for n in self.inner.append(topic, records)]

    def begin(self, topic: str, partition: int) -> int:
        return 0

    def end(self, topic: str, partition: int) -> int:
        """Behind another gap, as behind the end of a transaction."""
        count = self.inner.end(topic, partition)
        return self.FIRST + self.GAP * count if count else 0

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        first = max(0, -((self.FIRST - offset) // self.GAP))
        if first >= self.inner.end(topic, partition):
            return []
        found = self.inner.read(topic, partition, first, min(limit, self.MOST))
        return [r._replace(offset=self.FIRST + self.GAP * r.offset) for r in found]
