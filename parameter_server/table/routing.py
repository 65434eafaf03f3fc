"""Routing of keys to shards: de-duplicates a batch, splits it by shard and merges the answers.

The *high* half of a key's hash is cut into equal ranges, one per shard; tables inside a shard use the low
bits. The order of a result is a function of its input alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from parameter_server.table import kernels
from recsys.arrays.key_index import cells_for, empty_index, insert

Keys = NDArray[np.int64]
Rows = NDArray[np.float32]


def as_keys(keys: NDArray[np.int64]) -> Keys:
    """Contiguous int64, copied only if needed."""
    return np.ascontiguousarray(keys, np.int64)


def as_rows(rows: NDArray[np.float32]) -> Rows:
    """Contiguous float32, copied only if needed."""
    return np.ascontiguousarray(rows, np.float32)


def shard_of(keys: Keys, shards: int) -> Keys:
    """The shard of each key, (N,) in [0, shards)."""
    return _split(keys, shards)[0]


@dataclass(frozen=True)
class Split:
    """Batch of keys by shard: shard *s* owns positions ``order[bounds[s]:bounds[s + 1]]``."""

    order: Keys
    bounds: Keys

    def of(self, shard: int) -> Keys:
        """Positions of one shard's keys in the batch, ascending."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]

    def merge(self, rows: Sequence[Rows], dim: int) -> Rows:
        """Shards' rows in the order of the batch, (N, dim)."""
        out = np.empty((len(self.order), dim), np.float32)
        for shard, part in enumerate(rows):
            out[self.of(shard)] = part
        return out


def split(keys: Keys, shards: int) -> Split:
    """Splits a batch by shard, keeping the order within each."""
    return Split(*_split(keys, shards)[1:])


def unique(keys: Keys) -> tuple[Keys, Keys]:
    """Distinct keys (M,) in the order of first occurrence, and each key's position among them (N,)."""
    keys = as_keys(keys)
    distinct, inverse = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    index = empty_index(cells_for(len(keys)))
    count = insert(index, distinct, 0, keys, inverse)
    return distinct[:count], inverse


def _split(keys: Keys, shards: int) -> tuple[Keys, Keys, Keys]:
    if shards < 1:
        raise ValueError(f"shards is {shards}, expected at least 1")
    keys = as_keys(keys)
    owners, order = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    bounds = np.empty(shards + 1, np.int64)
    kernels.split(keys, shards, owners, order, bounds)
    return owners, order, bounds
