"""Tables of an offline job behind one protocol: the shards' own implementation, or torchrec's. Both learn by
row-wise Adagrad; a test compares them. The vocabulary decides which keys have rows.

Legend: N keys of a batch, R rows, D dimension.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parameter_server.shard.lanes import RowGradients
from parameter_server.table.routing import Keys, Rows
from parameter_server.table.table import Table, initial_rows
from recsys.config.system_config import TableConfig
from training.offline.vocabulary import Vocabulary

COLUMNS = ("values", "accumulator")
Columns = dict[str, NDArray[Any]]


class RowTable(Protocol):
    """One table whose keys are those of a vocabulary."""

    def lookup(self, keys: Keys) -> Rows:
        """Rows (N, D); a key without a row reads its initial value."""

    def learn(self, rows: RowGradients) -> int:
        """Applies gradients of distinct keys with a row; returns the number rejected (not finite, too
        large)."""

    def export(self) -> Columns:
        """``values`` (R, D) and ``accumulator`` (R,), in the order of the vocabulary."""

    def load(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Restores an export."""


class OwnTable:
    """A shard's table (``parameter_server.table.table``) without admission and expiry: the reference."""

    def __init__(self, config: TableConfig, vocabulary: Vocabulary, seed: int) -> None:
        self._vocabulary = vocabulary
        self._config = replace(config, admit_after=1, ttl_s=0, budget_mb=0.0)
        self._seed = seed
        self.load(initial_columns(config, vocabulary, seed))

    def lookup(self, keys: Keys) -> Rows:
        return self._table.lookup(keys)

    def learn(self, rows: RowGradients) -> int:
        has_row = np.flatnonzero(self._vocabulary.find(rows.keys) >= 0)
        return self._table.apply(*rows.take(has_row), now_ms=0).refused

    def export(self) -> Columns:
        columns = self._table.export()
        order = np.argsort(columns["keys"])
        return {name: columns[name][order] for name in COLUMNS}

    def load(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self._table = Table(self._config, self._seed)
        used_ms = np.zeros(len(self._vocabulary), np.int64)
        self._table.load({"keys": self._vocabulary.keys, "used_ms": used_ms, **columns})


def initial_columns(config: TableConfig, vocabulary: Vocabulary, seed: int) -> Columns:
    """Untrained rows."""
    values = initial_rows(config, seed, vocabulary.keys)
    return {"values": values, "accumulator": np.zeros(len(vocabulary), np.float32)}


def started_columns(
    config: TableConfig, vocabulary: Vocabulary, seed: int, before: Mapping[str, NDArray[Any]]
) -> Columns:
    """Rows of a vocabulary, from a snapshot (``before``, keys in any order) where it has them."""
    columns = initial_columns(config, vocabulary, seed)
    at = vocabulary.find(before["keys"])
    has_row = at >= 0
    for name in COLUMNS:
        columns[name][at[has_row]] = before[name][has_row]
    return columns
