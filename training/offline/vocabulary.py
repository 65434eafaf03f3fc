"""Chooses the keys that get rows of their own in offline training, which counts them exactly, once. Another
key reads its initial value and learns nothing, as online before admission.

Legend: N keys asked for, R rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import Keys, shard_of
from parameter_server.table.table import rows_within
from recsys.arrays.id_map import IdMap
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

    def take(self, which: NDArray[Any]) -> "KeyCounts":
        """The keys at some positions, or of a mask."""
        return KeyCounts(self.keys[which], self.counts[which], self.last_ms[which])


class KeyCounter:
    """Counts the keys of all tables over batches."""

    def __init__(self, tables: Iterable[str]) -> None:
        columns = ("counts", "last_ms")
        self._ids = {t: IdMap(columns={c: np.zeros(8, np.int64) for c in columns}) for t in tables}

    def add(self, table: str, keys: Keys, counts: NDArray[np.integer[Any]], last_ms: int | Counts) -> None:
        """Adds distinct keys, the number of examples behind each, and when the last of these was."""
        ids = self._ids[table]
        slots, columns = ids.insert(keys), ids.columns
        columns["counts"][slots] += counts
        columns["last_ms"][slots] = np.maximum(columns["last_ms"][slots], last_ms)

    def totals(self) -> dict[str, KeyCounts]:
        """Counts by table."""
        exports = {name: ids.export(np.argsort(ids.keys)) for name, ids in self._ids.items()}
        return {name: KeyCounts(**columns) for name, columns in exports.items()}


def select_keys(
    config: TableConfig, seen: KeyCounts, end_ms: int, shards: int = 1, parts: int = 1
) -> Vocabulary:
    """Selects keys seen ``admit_after`` times and within their time-to-live at ``end_ms``; those used last,
    if a part's keys exceed its share of ``shards`` budgets. So keys of other parts change nothing."""
    keeps = seen.counts >= config.admit_after
    if config.ttl_s:
        keeps &= seen.last_ms >= end_ms - 1000 * config.ttl_s
    keys, last_ms = seen.keys[keeps], seen.last_ms[keeps]
    if rows := rows_within(config.budget_mb, config.dim):
        limit = max(1, shards * rows // parts)
        part = shard_of(keys, parts)
        order = np.lexsort((keys, -last_ms, part))
        place = np.arange(len(order)) - np.searchsorted(part[order], part[order])  # within its part
        newest = np.sort(order[place < limit])
        keys, last_ms = keys[newest], last_ms[newest]
    return Vocabulary(keys, last_ms)
