"""What is known of the places among ``examples`` that are gone from the log, or empty.

An empty place doesn't say whose it was, and neither does one that retention dropped; the archive may. So from
the first of them on that nobody can tell, a user may have had examples. And one may have been the ``Forget``
at which a user's rows were dropped: whoever learns from before it would bring these rows back. Neither holds
for those that unlearning leaves: no step of the live epoch has learned from them, and no snapshot from before
them has rows of that user. So it notes where they are.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec
import pyarrow.parquet as pq

from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log
from recsys.process.part_snapshot import PartState
from training.archive.files import files_of

PART: Final = "unlearning"
_EMPTY: Final = b""  # the key of a place whose user was forgotten
_ROWS: Final = 10_000
_Noted = dict[int, list[int]]


def free_until(
    log: Log, archive: Path, partition: int, key: bytes, own: int | None, spared: Collection[int]
) -> int:
    """The offset before which no example of a partition that was learned can be of the user of ``key``, by
    the log and, where that begins later, by the archive's files in the folder ``archive``. ``own``: that of
    the user's first example on the log. ``spared``: empty places that no step has learned from."""
    begin, end = log.begin(EXAMPLES, partition), log.end(EXAMPLES, partition)
    known = _archived_until(archive, partition, key, begin)
    if known < begin:
        return known
    empty = log.keyed(EXAMPLES, partition, [_EMPTY], end)
    first = next((offset for offset in empty if offset not in spared), end)
    return first if own is None else min(first, own)


def _archived_until(archive: Path, partition: int, key: bytes, begin: int) -> int:
    """As ``free_until``, by the archive, which leaves rows out when it erases. At most about ``begin``."""
    known = 0
    for held in files_of(archive, EXAMPLES):
        if held.partition != partition or held.last < known:
            continue
        if known >= begin or held.first > known:
            break
        with pq.ParquetFile(held.path) as file:
            for batch in file.iter_batches(_ROWS, columns=["offset", "key"], use_threads=False):
                columns = (batch["offset"].to_pylist(), batch["key"].to_pylist())
                for offset, its in zip(*columns, strict=True):
                    if offset > known or its in (key, _EMPTY, None):
                        return known
                    known = max(known, offset + 1)
    return min(known, begin)


class Emptied:
    """The places that unlearning left empty, in a file of the state folder."""

    def __init__(self, log: Log, state: str) -> None:
        """Raises LogLost where the file is of another log, ValueError where it can't be read."""
        self._log, self._state = log, PartState(state, PART)
        saved = self._state.load(log.id)
        self._noted = msgspec.msgpack.decode(saved.blob, type=_Noted) if saved else _Noted()

    def noted(self, partition: int) -> set[int]:
        return set(self._noted.get(partition, []))

    def others(self) -> dict[int, int]:
        """By partition, the last empty place that something else left: nothing may be learned again from
        before it on."""
        found = {}
        for partition in range(self._log.partitions(EXAMPLES)):
            end = self._log.end(EXAMPLES, partition)
            noted = self.noted(partition)
            places = self._log.keyed(EXAMPLES, partition, [_EMPTY], end)
            others = [offset for offset in places if offset not in noted]
            if others:
                found[partition] = others[-1]
        return found

    def note(self, partition: int, offsets: list[int]) -> None:
        """Before they become empty."""
        begin = self._log.begin(EXAMPLES, partition)
        before = [offset for offset in self._noted.get(partition, []) if offset >= begin]
        self._noted[partition] = sorted({*before, *offsets})
        self._state.save(self._log.id, {}, msgspec.msgpack.encode(self._noted))
