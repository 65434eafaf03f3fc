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
from parameter_server.table.table import Table
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

    def export(self, keys: Keys) -> Columns:
        """``values`` (N, D) and ``accumulator`` (N,) of keys of the vocabulary."""

    def load(self, keys: Keys, columns: Mapping[str, NDArray[Any]]) -> None:
        """Restores an export of keys."""


class OwnTable:
    """A shard's table (``parameter_server.table.table``) without admission and expiry: the reference."""

    def __init__(self, config: TableConfig, vocabulary: Vocabulary, seed: int) -> None:
        self._vocabulary = vocabulary
        self._table = Table(replace(config, admit_after=1, ttl_s=0, budget_mb=0.0), seed)

    def lookup(self, keys: Keys) -> Rows:
        return self._table.lookup(keys)

    def learn(self, rows: RowGradients) -> int:
        has_row = np.flatnonzero(self._vocabulary.find(rows.keys) >= 0)
        return self._table.apply(*rows.take(has_row), now_ms=0).refused

    def export(self, keys: Keys) -> Columns:
        values, has_row = self._table.lookup_known(keys)  # others have learned nothing yet
        accumulator = np.zeros(len(keys), np.float32)
        accumulator[has_row] = self._table.export_rows(keys[has_row])["accumulator"]
        return {"values": values, "accumulator": accumulator}

    def load(self, keys: Keys, columns: Mapping[str, NDArray[Any]]) -> None:
        self._table.load({"keys": keys, "used_ms": np.zeros(len(keys), np.int64), **columns})
