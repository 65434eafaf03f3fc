"""The log as if some users had no examples."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from recsys.events.hashing import partition_of
from recsys.events.records import EXAMPLES, non_example
from recsys.log.protocol import Log, Record, records_of_keys
from training.deletion.erasure import erased_record

Users = Mapping[str, int]  # by id as text: the offset of the removal among their events


class LogWithout:
    """A log in which the examples of some users are tombstones, otherwise unchanged."""

    def __init__(self, log: Log, users: Users) -> None:
        self._log = log
        self._before = {user.encode(): offset for user, offset in users.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        records = self._log.read(topic, partition, offset, limit)
        if topic != EXAMPLES:
            return records
        return [self._erased(record) or record for record in records]

    def places(self, partition: int, users: Users) -> list[int]:
        """The offsets of examples of the users, ascending."""
        own = self._own(partition, users)
        return [record.offset for record in own if non_example(record.value) is None]

    def changed(self, partition: int, users: Users) -> list[int]:
        """The offsets of all changed records: ``places``, and those of records that aren't examples."""
        return [record.offset for record in self._own(partition, users)]

    def _own(self, partition: int, users: Users) -> list[Record]:
        keys = keys_by_partition(self._log, users).get(partition, [])
        end = self._log.end(EXAMPLES, partition)
        records = records_of_keys(self._log, EXAMPLES, partition, keys, end)
        return [record for record in records if self._erased(record) is not None]

    def _erased(self, record: Record) -> Record | None:
        return erased_record(EXAMPLES, self._before, record)


def keys_by_partition(log: Log, users: Users) -> dict[int, list[bytes]]:
    """The record keys of users, by their partition."""
    keys = defaultdict[int, list[bytes]](list)
    for user in users:
        keys[partition_of(user, log.partitions(EXAMPLES))].append(user.encode())
    return dict(keys)
