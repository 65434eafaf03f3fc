"""What a broker sent of one partition and nobody has read yet."""

from collections import deque

from recsys.log.protocol import Record


class Buffer:
    """Records in order, with their bytes counted as they come and go."""

    def __init__(self) -> None:
        self._records: deque[Record] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def last(self) -> Record:
        return self._records[-1]

    def put(self, record: Record) -> None:
        self._records.append(record)
        self._bytes += len(record.value)

    def take(self, limit: int) -> list[Record]:
        """The first records, at most ``limit``."""
        taken = [self._records.popleft() for _ in range(min(limit, len(self._records)))]
        self._bytes -= sum(len(record.value) for record in taken)
        return taken

    def is_full(self, records: int, size: int) -> bool:
        """Whether so many records or bytes wait."""
        return len(self._records) >= records or self._bytes >= size
