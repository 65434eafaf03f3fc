"""A shard over a snapshot whose rows stay in its mapped file: small while it changes little.

The full file of a part is the base of each table, and the increments on it are what the tables have changed;
dense parameters, counts of sightings and what is held back are read into memory. The snapshot may be pruned
meanwhile: the file lives as long as it is mapped. Nothing may write to it, and nothing does.
"""

import json
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.shard.shard import Shard, ShardSpec
from parameter_server.storage import increments
from parameter_server.storage.durable_shard import load_shard
from parameter_server.storage.snapshots import Snapshot
from parameter_server.table.dense import Vector
from parameter_server.table.overlay_table import BaseRows, OverlayTable
from parameter_server.table.table import ROW_COLUMNS
from recsys.config.system_config import TableConfig

Arrays = Mapping[str, NDArray[Any]]
# Of the columns of rows.
_TYPES: Final[Mapping[str, np.dtype[Any]]] = {"I64": np.dtype("<i8"), "F32": np.dtype("<f4")}
_BLOCK: Final = 1 << 16  # rows whose digest is taken at once


def open_mmap_shard(
    spec: ShardSpec, dense: Vector | None, snapshot: Snapshot, step: int | None = None
) -> Shard:
    """A shard as ``load_shard`` would fill it (as if after ``step``, if given), from a snapshot whose digests
    have been checked. Read into memory as ever is one that another number of shards wrote, or whose full file
    hasn't a table's columns as the shard has them."""
    tables = None
    if snapshot.parts == spec.parts:
        tables = _tables(spec, [map_arrays(path, _is_row) for path in snapshot.files(spec.part)])
    shard = Shard(spec, dense, tables)
    if tables is None:
        load_shard(shard, snapshot)
    else:
        _load_rest(shard, tables, snapshot)
    shard.applied = shard.applied if step is None else step
    return shard


def map_arrays(path: Path, wanted: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """The ``wanted`` arrays of a safetensors file, int64 or float32, as read-only views of the mapped file.

    The file is the length of its header (8 bytes, little-endian), the header as JSON, then the data, to which
    ``data_offsets`` count. Raises ValueError for other types.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    return {
        name: _view(data, begin, name, its, path) for name, its in header.items() if wanted(name)
    }


def _view(
    data: mmap.mmap, begin: int, name: str, its: Mapping[str, Any], path: Path
) -> NDArray[Any]:
    if its["dtype"] not in _TYPES:
        raise ValueError(
            f"{path}: {name} is {its['dtype']}, expected one of {', '.join(_TYPES)} to be mapped"
        )
    start, stop = its["data_offsets"]
    kind = _TYPES[its["dtype"]]
    count = (stop - start) // kind.itemsize
    flat = np.frombuffer(data, kind, count, begin + start if count else 0)
    # Compiled loops take aligned arrays alone. ShardFiles that safetensors wrote have no others.
    return np.require(flat.reshape(its["shape"]), requirements=["C", "A"])


def _is_row(name: str) -> bool:
    """Whether an array is a column of a table's rows, or an increment's removed keys."""
    columns = (*ROW_COLUMNS, increments.REMOVED)
    return name.startswith("table/") and name.rpartition("/")[2] in columns


def _tables(
    spec: ShardSpec, files: list[dict[str, NDArray[Any]]]
) -> dict[str, OverlayTable] | None:
    """The tables that a part's files are; None where one can't be mapped."""
    if not all(_fits(its, config) for its in files for config in spec.tables):
        return None
    tables = {}
    full, *later = files
    for config in spec.tables:
        base = BaseRows(_rows(full, config))
        table = OverlayTable(base, config, spec.seed, spec.bound, spec.part, spec.parts)
        for its in later:
            table.replace(_rows(its, config), its[f"table/{config.name}/{increments.REMOVED}"])
        tables[config.name] = table
    return tables


def _fits(its: Arrays, config: TableConfig) -> bool:
    """Whether a file has all columns of a table's rows, in its dimension."""
    names = [f"table/{config.name}/{column}" for column in ROW_COLUMNS]
    values = its.get(f"table/{config.name}/values")
    return set(names) <= its.keys() and values is not None and values.shape[1:] == (config.dim,)


def _rows(its: Arrays, config: TableConfig) -> dict[str, NDArray[Any]]:
    return {c: its[f"table/{config.name}/{c}"] for c in ROW_COLUMNS}


def _load_rest(shard: Shard, tables: Mapping[str, OverlayTable], snapshot: Snapshot) -> None:
    """All but the rows, which the tables have; and what of them is published."""
    part = shard.spec.part
    arrays = snapshot.read(part, lambda name: not _is_row(name))
    held = {name: arrays.pop(name) for name in list(arrays) if name.startswith("held/")}
    for name, table in tables.items():  # which have their rows already: no more come
        arrays[f"table/{name}/keys"] = arrays[f"table/{name}/used_ms"] = np.empty(0, np.int64)
        arrays[f"table/{name}/values"] = np.empty((0, table.config.dim), np.float32)
        arrays[f"table/{name}/accumulator"] = np.empty(0, np.float32)
    shard.load([arrays], snapshot.meta(part))
    for name, table in tables.items():
        its = {c: held[f"held/{name}/{c}"] for c in WITHHELD_COLUMNS if f"held/{name}/{c}" in held}
        for keys, values in table.blocks(_BLOCK):
            here = np.isin(its["keys"], keys) if its else None
            shard.published.load(name, keys, values, {c: a[here] for c, a in its.items()})
