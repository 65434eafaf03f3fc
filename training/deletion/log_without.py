"""The log as if some examples had never been: those of unlearned users, and those that withdrawals name."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from recsys.events.control_records import Unlearning
from recsys.events.hashing import partition_of
from recsys.events.records import EXAMPLES, Example, Forget, Withdrawn, non_example, unpack
from recsys.events.withdrawal import withdraws_example
from recsys.log.protocol import Log, Record, records_of_keys
from recsys.process.log_consumer import UNREADABLE
from training.deletion.erasure import erased_record, tombstone_of

Users = Mapping[str, int]  # by id as text: the offset of the removal or withdrawal among their events


class LogWithout:
    """A log in which the examples that some requests leave out are tombstones, otherwise unchanged. Those of
    withdrawals are known from the joiner's marks on ``examples``: make it once these are there."""

    def __init__(self, log: Log, requests: Iterable[Unlearning]) -> None:
        self._log = log
        self._before = dict[bytes, int]()
        self._marks = defaultdict[bytes, list[tuple[int, Withdrawn]]](list)
        self._ranges = defaultdict[int, list[range]](list)
        for request in requests:
            if not request.rewind_ms:
                self._before |= {user.encode(): offset for user, offset in request.users.items()}
                continue
            for part in request.left_out:
                self._ranges[part.partition].append(range(part.start, part.stop))
            for _, record, mark in end_marks(log, request.users):
                if isinstance(mark, Withdrawn):
                    self._marks[record.key].append((record.offset, mark))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        records = self._log.read(topic, partition, offset, limit)
        if topic != EXAMPLES:
            return records
        ranges = self._ranges.get(partition, ())
        return [
            self._tombstone(record, any(record.offset in among for among in ranges)) or record
            for record in records
        ]

    def places(self, partition: int, users: Users) -> list[int]:
        """The offsets of examples of the users that are left out, ascending."""
        own = self._left_out(partition, users)
        return [record.offset for record, _ in own if non_example(record.value) is None]

    def tombstones(self, partition: int, users: Users) -> list[Record]:
        """The records that replace those of the users: ``places``, and ``Forget``s."""
        return [tombstone for _, tombstone in self._left_out(partition, users)]

    def _left_out(self, partition: int, users: Users) -> Iterator[tuple[Record, Record]]:
        keys = keys_by_partition(self._log, users).get(partition, [])
        end = self._log.end(EXAMPLES, partition)
        for record in records_of_keys(self._log, EXAMPLES, partition, keys, end):
            if (tombstone := self._tombstone(record)) is not None:
                yield record, tombstone

    def _tombstone(self, record: Record, is_left_out: bool = False) -> Record | None:
        """The record's tombstone, if it is left out: by its range, its user's removal or a mark."""
        if record.key in self._before:
            erased = erased_record(EXAMPLES, self._before, record)
            if erased is not None:
                return erased
        marks = [mark for end, mark in self._marks.get(record.key, ()) if record.offset < end]
        if not marks and not is_left_out:
            return None
        try:
            example = unpack(record.value, Example)
        except UNREADABLE:  # a mark, or unreadable
            return None
        is_left_out = is_left_out or any(withdraws_example(mark, example) for mark in marks)
        return tombstone_of(record, example) if is_left_out else None


def end_marks(log: Log, users: Users) -> Iterator[tuple[int, Record, Forget | Withdrawn]]:
    """The joiner's marks of the users' removals or withdrawals, each with its partition and record."""
    for partition, keys in keys_by_partition(log, users).items():
        end = log.end(EXAMPLES, partition)
        for record in records_of_keys(log, EXAMPLES, partition, keys, end):
            message = non_example(record.value)
            if isinstance(message, Forget | Withdrawn) and message.offset == users[record.key.decode()]:
                yield partition, record, message


def keys_by_partition(log: Log, users: Users) -> dict[int, list[bytes]]:
    """The record keys of users, by their partition."""
    keys = defaultdict[int, list[bytes]](list)
    for user in users:
        keys[partition_of(user, log.partitions(EXAMPLES))].append(user.encode())
    return dict(keys)
