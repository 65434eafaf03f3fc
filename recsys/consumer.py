"""Reads some partitions of a topic in turns, and remembers where it is."""

from collections.abc import Mapping, Sequence

from recsys.log import Log, Record


class Consumer:
    """``offsets`` are the next to read, by partition; partitions without one begin where the log does."""

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

    def poll(self, limit: int = 1000) -> list[tuple[int, Record]]:
        """The next records with their partition, at most ``limit`` of each partition, in order within it.

        Never waits. Raises LogLost, having moved nothing, where an offset can't be read any more.
        """
        read = {p: self._log.read(self._topic, p, at, limit) for p, at in self.offsets.items()}
        for partition, records in read.items():
            if records:
                self.offsets[partition] = records[-1].offset + 1
        return [(partition, record) for partition, records in read.items() for record in records]
