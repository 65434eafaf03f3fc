"""Rows of a snapshot without a shard, in its mapped files: as published, or as learned."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.rounding import round_dense
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.storage.mapped_rows import COLUMNS, MappedRows
from parameter_server.storage.mmap_shard import map_arrays
from parameter_server.storage.snapshots import Snapshot, require
from parameter_server.table.dense import SENT
from parameter_server.table.routing import Keys, Rows
from parameter_server.table.table import columns_in, initial_rows
from recsys.config.system_config import TableConfig

Floats = NDArray[np.float32]


class ServingRows(NamedTuple):
    """Rows of a snapshot by table, without optimizer state, and its dense parameters as published: the state
    that a replica serves from."""

    snapshot: Snapshot
    tables: dict[str, MappedRows]
    dense: Floats | None


def map_rows(
    folder: Path,
    line: str,
    epoch: int | None = None,
    step: int | None = None,
    wanted: Collection[str] | None = None,
) -> ServingRows:
    """The newest usable snapshot (of an epoch or step, if given), of some tables or all: the state of a
    replica that has followed every delta. Raises NoSnapshot."""
    while True:
        snapshot = require(folder, line, epoch, step)
        try:
            return _mapped(snapshot, wanted)
        except FileNotFoundError:
            if snapshot.folder.exists():
                raise
            # It was removed in between: there is a newer one, or the next ``require`` raises.


def _mapped(snapshot: Snapshot, wanted: Collection[str] | None) -> ServingRows:
    contents = [snapshot.read(part, _is_beside_rows) for part in range(snapshot.parts)]
    tables = _tables_of(snapshot, wanted)
    for name, rows in tables.items():
        groups = (columns_in(arrays, f"held/{name}/", WITHHELD_COLUMNS) for arrays in contents)
        rows.withhold([columns for columns in groups if columns])
    return ServingRows(snapshot, tables, _dense_of(snapshot, contents))


def _tables_of(snapshot: Snapshot, wanted: Collection[str] | None) -> dict[str, MappedRows]:
    files = [[map_arrays(p, _is_column) for p in snapshot.files(n)] for n in range(snapshot.parts)]
    # Sorted: the files beside a snapshot are written in this order, and a run of a simulation is repeatable.
    names = sorted({name.split("/")[1] for *_, newest in files for name in newest})
    tables = {name: MappedRows(snapshot.step) for name in names if wanted is None or name in wanted}
    for name, rows in tables.items():
        for part, maps in enumerate(files):
            rows.add(snapshot, part, name, maps)
    return tables


def _dense_of(snapshot: Snapshot, contents: Sequence[Mapping[str, NDArray[Any]]]) -> Floats | None:
    for part, arrays in enumerate(contents):
        if "dense/averaged" in arrays:
            format = snapshot.meta(part).get("delta_format", "fp32")
            newest: Floats = round_dense(arrays["dense/averaged"], format)[1]
            return arrays.get(SENT, newest)
    return None


def rows_of(snapshot: Snapshot, config: TableConfig, seed: int, keys: Keys) -> Rows:
    """Rows of keys (N, D) as a shard filled from the snapshot would answer; missing ones have their initial
    values. Raises OSError if a file is gone, ValueError if a table has another dimension."""
    base = _tables_of(snapshot, [config.name])[config.name]
    if base.dim != config.dim:
        raise ValueError(
            f"{snapshot.folder}: rows of {config.name} have dimension {base.dim}, expected {config.dim}: "
            "the snapshot is of another model"
        )
    rows, places = base.lookup(keys, published=False)
    return np.where(places[:, None] < 0, initial_rows(config, seed, keys), rows)


def _is_column(name: str) -> bool:
    return name.startswith("table/") and name.rpartition("/")[2] in COLUMNS


def _is_beside_rows(name: str) -> bool:
    return name.startswith("held/") or name == "dense/averaged"
