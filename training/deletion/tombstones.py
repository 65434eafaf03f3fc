"""Tracks tombstones in ``examples``: places whose example was erased, or fell out of retention.

A tombstone doesn't name its user. So from the first unidentified one on, a user may have had examples; and
one may have been the ``Forget`` that removed a user's rows, which learning from before it would restore.
Neither applies to the tombstones that unlearning leaves, whose offsets are recorded.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log
from recsys.process.part_snapshot import PartState
from training.archive.digest import read_batches
from training.archive.files import files_of

PART: Final = "unlearning"
_ERASED: Final = b""  # the key of a tombstone
_ROWS: Final = 10_000
_Noted = dict[int, list[int]]


def free_until(
    log: Log, archive: Path, partition: int, keys: Collection[bytes], own: int | None, spared: Collection[int]
) -> int:
    """The offset before which no learned example of a partition can belong to the users of ``keys``, by the
    log and, before its begin, the files in the folder ``archive``. ``own``: offset of the users' first
    example on the log. ``spared``: tombstones that no step has learned from. Raises DamagedFile."""
    begin, end = log.begin(EXAMPLES, partition), log.end(EXAMPLES, partition)
    archived = _archived_until(archive, partition, {*keys, _ERASED, None}, begin)
    if archived < begin:
        return archived
    tombstones = log.keyed(EXAMPLES, partition, [_ERASED], end)
    first = next((offset for offset in tombstones if offset not in spared), end)
    return first if own is None else min(first, own)


def _archived_until(archive: Path, partition: int, unclear: Collection[bytes | None], begin: int) -> int:
    """As ``free_until`` by the archive, which drops erased rows; at most ``begin``. ``unclear``: keys of the
    users, and of rows that may have been theirs."""
    free = 0
    for part in files_of(archive, EXAMPLES):
        if part.partition != partition or part.last < free:
            continue
        if free >= begin or part.first > free:
            break
        for batch in read_batches(part.path, _ROWS, ["offset", "key"]):
            columns = (batch["offset"].to_pylist(), batch["key"].to_pylist())
            for offset, row_key in zip(*columns, strict=True):
                if offset > free or row_key in unclear:
                    return free
                free = max(free, offset + 1)
    return min(free, begin)


class UnlearnedPlaces:
    """Offsets of the tombstones that unlearning left, in a file of the state folder."""

    def __init__(self, log: Log, state: str) -> None:
        """Raises LogLost if the file is of another log, ValueError if it is unreadable."""
        self._log, self._state = log, PartState(state, PART)
        saved = self._state.load(log.id)
        self._noted = msgspec.msgpack.decode(saved.blob, type=_Noted) if saved else _Noted()

    def noted(self, partition: int) -> set[int]:
        return set(self._noted.get(partition, []))

    def others(self) -> dict[int, int]:
        """The last tombstone of another origin, by partition: steps up to it must not be learned again."""
        last = {}
        for partition in range(self._log.partitions(EXAMPLES)):
            end = self._log.end(EXAMPLES, partition)
            noted = self.noted(partition)
            tombstones = self._log.keyed(EXAMPLES, partition, [_ERASED], end)
            others = [offset for offset in tombstones if offset not in noted]
            if others:
                last[partition] = others[-1]
        return last

    def note(self, partition: int, offsets: list[int]) -> None:
        """Records offsets, before their examples are erased."""
        begin = self._log.begin(EXAMPLES, partition)
        before = [offset for offset in self._noted.get(partition, []) if offset >= begin]
        self._noted[partition] = sorted({*before, *offsets})
        self._state.save(self._log.id, {}, msgspec.msgpack.encode(self._noted))
