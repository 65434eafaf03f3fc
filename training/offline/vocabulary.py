"""Which keys get rows of their own in offline training: those of its range, seen as often as admission asks.

What an online line finds out as it goes (who has been seen often enough, who was used when), a job that has
its range before it counts exactly, once. An id that isn't in the vocabulary reads its initial value and
learns nothing, as online before it is admitted.

Legend: N keys asked for, R rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import Keys
from parameter_server.table.table import rows_within
from recsys.config.system_config import TableConfig

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """The keys of one table, ascending (R,), and when each was used last (R,)."""

    keys: Keys
    used_ms: Counts

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> Keys:
        """The row of each key (N,), -1 where it has none."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


@dataclass(frozen=True)
class KeyCounts:
    """How often keys were seen as features of examples, and when last: keys ascending."""

    keys: Keys
    counts: Counts
    last_ms: Counts

    @staticmethod
    def none() -> "KeyCounts":
        empty = np.empty(0, np.int64)
        return KeyCounts(empty, empty, empty)


class Counter:
    """Counts the keys of all tables over batches. Merges now and then, so memory follows the keys."""

    def __init__(self, tables: Iterable[str], merge_every: int = 64) -> None:
        self._seen = {name: [KeyCounts.none()] for name in tables}
        self._every = merge_every

    def see(self, table: str, keys: Keys, counts: NDArray[np.int32], time_ms: int) -> None:
        """Distinct keys of a batch, and the examples behind each."""
        waiting = self._seen[table]
        waiting.append(
            KeyCounts(keys, counts.astype(np.int64), np.full(len(keys), time_ms, np.int64))
        )
        if len(waiting) > self._every:
            waiting[:] = [merged(waiting)]

    def sightings(self) -> dict[str, KeyCounts]:
        """What was seen, by table."""
        return {name: merged(waiting) for name, waiting in self._seen.items()}


def merged(parts: Sequence[KeyCounts]) -> KeyCounts:
    """KeyCounts of several batches as one: counts are added, the last time stands."""
    keys, at = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
    counts, last_ms = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    np.add.at(counts, at, np.concatenate([part.counts for part in parts]))
    np.maximum.at(last_ms, at, np.concatenate([part.last_ms for part in parts]))
    return KeyCounts(keys, counts, last_ms)


def select_keys(
    config: TableConfig,
    seen: KeyCounts,
    before: Vocabulary | None,
    shards: int,
) -> Vocabulary:
    """Who gets a row: seen ``admit_after`` times, or in the ancestor's table ``before``; not past its
    time-to-live at the end; of more than ``shards`` budgets hold, those used last."""
    known = np.empty(0, np.int64) if before is None else before.keys
    used = np.empty(0, np.int64) if before is None else before.used_ms
    old = KeyCounts(known, np.full(len(known), config.admit_after), used)
    both = merged([seen, old])
    keeps = both.counts >= config.admit_after
    if config.ttl_s and len(both.last_ms):
        keeps &= both.last_ms >= both.last_ms.max() - 1000 * config.ttl_s
    keys, last_ms = both.keys[keeps], both.last_ms[keeps]
    limit = shards * rows_within(config.budget_mb, config.dim)
    if limit and len(keys) > limit:
        newest = np.sort(np.lexsort((keys, -last_ms))[:limit])
        keys, last_ms = keys[newest], last_ms[newest]
    return Vocabulary(keys, last_ms)
