"""Chooses the keys that get rows of their own in offline training, which counts them exactly, once. Another
key reads its initial value and learns nothing, as online before admission.

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
    """Keys of one table, ascending (R,), and the time of each one's last use (R,)."""

    keys: Keys
    used_ms: Counts

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> Keys:
        """The row of each key (N,), -1 for a key without one."""
        if not len(self.keys):
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


@dataclass(frozen=True)
class KeyCounts:
    """Examples and last time of each key, keys ascending."""

    keys: Keys
    counts: Counts
    last_ms: Counts


class KeyCounter:
    """Counts the keys of all tables over batches. Merges now and then, so memory follows the keys."""

    def __init__(self, tables: Iterable[str], merge_every: int = 64) -> None:
        none = np.empty(0, np.int64)
        self._counts = {name: [KeyCounts(none, none, none)] for name in tables}
        self._every = merge_every

    def add(self, table: str, keys: Keys, counts: NDArray[np.int32], time_ms: int) -> None:
        """Adds the distinct keys of a batch, with the number of examples behind each."""
        parts, last_ms = self._counts[table], np.full(len(keys), time_ms, np.int64)
        parts.append(KeyCounts(keys, counts.astype(np.int64), last_ms))
        if len(parts) > self._every:
            parts[:] = [merge_counts(parts)]

    def totals(self) -> dict[str, KeyCounts]:
        """Counts by table."""
        return {name: merge_counts(parts) for name, parts in self._counts.items()}


def merge_counts(parts: Sequence[KeyCounts]) -> KeyCounts:
    """Adds the counts of several batches and keeps the last times."""
    keys, at = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
    counts, last_ms = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.int64)
    np.add.at(counts, at, np.concatenate([part.counts for part in parts]))
    np.maximum.at(last_ms, at, np.concatenate([part.last_ms for part in parts]))
    return KeyCounts(keys, counts, last_ms)


def select_keys(
    config: TableConfig, seen: KeyCounts, before: Vocabulary | None, shards: int
) -> Vocabulary:
    """Selects keys seen ``admit_after`` times or present in the ancestor's table ``before``, within their
    time-to-live at the end; if they exceed ``shards`` budgets, those used last."""
    if before is not None:
        admitted = np.full(len(before), config.admit_after)
        seen = merge_counts([seen, KeyCounts(before.keys, admitted, before.used_ms)])
    keeps = seen.counts >= config.admit_after
    if config.ttl_s and len(seen.last_ms):
        keeps &= seen.last_ms >= seen.last_ms.max() - 1000 * config.ttl_s
    keys, last_ms = seen.keys[keeps], seen.last_ms[keeps]
    limit = shards * rows_within(config.budget_mb, config.dim)
    if limit and len(keys) > limit:
        newest = np.sort(np.lexsort((keys, -last_ms))[:limit])
        keys, last_ms = keys[newest], last_ms[newest]
    return Vocabulary(keys, last_ms)
