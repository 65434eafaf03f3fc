"""A few rows of a snapshot, out of its mapped files: no shard is made, and only what is asked for is read.

Keys are looked through whole, eight bytes a row. The files of a part build on each other, the full one first
(parameter_server/storage/snapshots.py): what a later one has, or has removed, counts.
"""

from typing import Final

import numpy as np

from parameter_server.storage import increments
from parameter_server.storage.mmap_shard import map_arrays
from parameter_server.storage.snapshots import Snapshot
from parameter_server.table.routing import Keys, Rows, as_keys, shard_of
from parameter_server.table.table import initial_rows
from recsys.config.system_config import TableConfig

_COLUMNS: Final = ("keys", "values", increments.REMOVED)


def rows_of(snapshot: Snapshot, config: TableConfig, seed: int, keys: Keys) -> Rows:
    """The rows of distinct keys, (N, D), as a shard that was filled from the snapshot would answer: one that
    isn't there begins at its initial value. Raises OSError where a file is gone, ValueError where a table has
    another dimension."""
    keys = as_keys(keys)
    out, owners = initial_rows(config, seed, keys), shard_of(keys, snapshot.parts)
    for part in range(snapshot.parts):
        its = np.flatnonzero(owners == part)
        if len(its):
            out[its] = _rows_of_part(snapshot, part, config, seed, keys[its])
    return out


def _rows_of_part(
    snapshot: Snapshot, part: int, config: TableConfig, seed: int, keys: Keys
) -> Rows:
    initial, order = initial_rows(config, seed, keys), np.argsort(keys)
    out = initial.copy()
    ascending, prefix = keys[order], f"table/{config.name}/"
    wanted = {f"{prefix}{column}" for column in _COLUMNS}
    for path in snapshot.files(part):
        arrays = map_arrays(path, wanted.__contains__)
        values = arrays[f"{prefix}values"]
        if values.shape[1:] != (config.dim,):
            raise ValueError(
                f"{path}: rows of {config.name} have shape {values.shape[1:]}, expected ({config.dim},): "
                "the snapshot is of another model"
            )
        removed = arrays.get(f"{prefix}{increments.REMOVED}")
        if removed is not None:
            at, _ = _places(ascending, removed)
            out[order[at]] = initial[order[at]]
        at, rows = _places(ascending, arrays[f"{prefix}keys"])
        out[order[at]] = values[rows]
    return out


def _places(ascending: Keys, keys: Keys) -> tuple[Keys, Keys]:
    """Of the keys that are among ``ascending``: their places there, and in ``keys``."""
    at = np.searchsorted(ascending, keys)
    rows = np.flatnonzero(ascending[np.minimum(at, len(ascending) - 1)] == keys)
    return at[rows], rows
