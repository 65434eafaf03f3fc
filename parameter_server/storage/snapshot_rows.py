"""Rows of a snapshot without a shard: all rows as published, or a few by key from the mapped files."""

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.published import published_rows
from parameter_server.publish.rounding import round_dense
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.storage.increments import REMOVED
from parameter_server.storage.mmap_shard import map_arrays
from parameter_server.storage.snapshots import Snapshot, require
from parameter_server.table.dense import SENT
from parameter_server.table.routing import Keys, Rows, as_keys, shard_of
from parameter_server.table.table import columns_in, initial_rows
from recsys.config.system_config import TableConfig

_COLUMNS: Final = ("keys", "values", REMOVED)


class ServingRows(NamedTuple):
    """Published rows of a snapshot, without optimizer state. ``tables``: (keys (R,), values (R, D)) by
    name."""

    snapshot: Snapshot
    tables: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
    dense: NDArray[np.float32] | None


def load_rows(
    folder: Path, line: str, epoch: int | None = None, step: int | None = None
) -> ServingRows:
    """Published rows and dense parameters of the newest usable snapshot (of an epoch or step, if given): the
    state of a replica that has followed every delta. Raises NoSnapshot."""
    snapshot = require(folder, line, epoch, step)
    dense = None
    parts: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for part in range(snapshot.parts):
        format = snapshot.meta(part).get("delta_format", "fp32")
        arrays = snapshot.read(part, _is_served)
        if "dense/averaged" in arrays:
            _, newest = round_dense(arrays["dense/averaged"], format)
            dense = arrays.get(SENT, newest)
        for name, keys in arrays.items():
            if name.startswith("table/") and name.endswith("/keys"):
                table = name.removeprefix("table/").removesuffix("/keys")
                withheld = columns_in(arrays, f"held/{table}/", WITHHELD_COLUMNS)
                rows = published_rows(keys, arrays[f"table/{table}/values"], withheld, format)
                parts.setdefault(table, []).append(rows)
    tables = {
        table: (np.concatenate([k for k, _ in rows]), np.concatenate([v for _, v in rows]))
        for table, rows in parts.items()
    }
    return ServingRows(snapshot, tables, dense)


def rows_of(snapshot: Snapshot, config: TableConfig, seed: int, keys: Keys) -> Rows:
    """Rows of distinct keys (N, D) as a shard filled from the snapshot would answer; missing ones have their
    initial values. Scans the keys (8 bytes a row) and reads only the rows asked for.

    Raises OSError if a file is gone, ValueError if a table has another dimension.
    """
    keys = as_keys(keys)
    out, owners = initial_rows(config, seed, keys), shard_of(keys, snapshot.parts)
    for part in range(snapshot.parts):
        own = np.flatnonzero(owners == part)
        if len(own):
            out[own] = _rows_of_part(snapshot, part, config, seed, keys[own])
    return out


def _is_served(name: str) -> bool:
    """Whether an array isn't optimizer state."""
    return name.startswith("held/") or name == "dense/averaged" or name.endswith(_COLUMNS)


def _rows_of_part(
    snapshot: Snapshot, part: int, config: TableConfig, seed: int, keys: Keys
) -> Rows:
    """Applies the part's files in order: later ones replace or remove rows of earlier ones."""
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
        removed = arrays.get(f"{prefix}{REMOVED}")
        if removed is not None:
            at, _ = _common(ascending, removed)
            out[order[at]] = initial[order[at]]
        at, rows = _common(ascending, arrays[f"{prefix}keys"])
        out[order[at]] = values[rows]
    return out


def _common(ascending: Keys, keys: Keys) -> tuple[Keys, Keys]:
    """Positions in ``ascending`` and in ``keys`` of the keys in both."""
    at = np.searchsorted(ascending, keys)
    rows = np.flatnonzero(ascending[np.minimum(at, len(ascending) - 1)] == keys)
    return at[rows], rows
