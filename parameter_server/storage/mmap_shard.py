"""Shard over a memory-mapped snapshot: unchanged rows stay in the file.

A part's full file is the base of each table; its increments are applied as changes. All else is read into
memory. The snapshot may be pruned meanwhile: on a local file system a mapped file stays readable.
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
from parameter_server.table.dense import SENT, Vector
from parameter_server.table.overlay_table import BaseRows, OverlayTable
from parameter_server.table.table import ROW_COLUMNS, columns_in

_TYPES: Final[Mapping[str, np.dtype[Any]]] = {"I64": np.dtype("<i8"), "F32": np.dtype("<f4")}
_BLOCK: Final = 1 << 16  # rows digested at once


def open_mmap_shard(
    spec: ShardSpec, dense: Vector | None, snapshot: Snapshot, step: int | None = None
) -> Shard:
    """Opens a shard equal to one filled by ``load_shard`` (as if after ``step``, if given). Reads the rows
    into memory if another number of shards wrote the snapshot or a file lacks a table's columns or
    dimension."""
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
    """Read-only views of the ``wanted`` int64 or float32 arrays of a safetensors file: the header's length (8
    bytes, little-endian), the JSON header, then the data. Raises ValueError for other types."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        if not wanted(name):
            continue
        dtype = _TYPES.get(entry["dtype"])
        if dtype is None:
            expected = f"expected one of {', '.join(_TYPES)} to be mapped"
            raise ValueError(f"{path}: {name} is {entry['dtype']}, {expected}")
        start, stop = entry["data_offsets"]
        count = (stop - start) // dtype.itemsize
        flat = np.frombuffer(data, dtype, count, begin + start if count else 0)
        # Compiled loops need aligned arrays; safetensors writes no others.
        arrays[name] = np.require(flat.reshape(entry["shape"]), requirements=["C", "A"])
    return arrays


def _is_row(name: str) -> bool:
    """Whether an array is a table's row column or an increment's removed keys."""
    columns = (*ROW_COLUMNS, increments.REMOVED)
    return name.startswith("table/") and name.rpartition("/")[2] in columns


def _tables(spec: ShardSpec, files: list[dict[str, NDArray[Any]]]) -> dict[str, OverlayTable] | None:
    """Tables of a part's files; None if a file lacks a table's columns or dimension."""
    tables = {}
    for config in spec.tables:
        prefix = f"table/{config.name}/"
        full, *later = (columns_in(arrays, prefix, ROW_COLUMNS) for arrays in files)
        for rows in (full, *later):
            if len(rows) < len(ROW_COLUMNS) or rows["values"].shape[1:] != (config.dim,):
                return None
        base = BaseRows(full)
        table = OverlayTable(base, config, spec.seed, spec.bound, spec.part, spec.parts)
        for rows, arrays in zip(later, files[1:], strict=True):
            table.replace(rows, arrays[prefix + increments.REMOVED])
        tables[config.name] = table
    return tables


def _load_rest(shard: Shard, tables: Mapping[str, OverlayTable], snapshot: Snapshot) -> None:
    """Loads everything but the rows, and the published state of the rows."""
    part = shard.spec.part
    arrays = snapshot.read(part, lambda name: not _is_row(name))
    names = [name for name in arrays if name.startswith("held/") and name != SENT]
    withheld = {name: arrays.pop(name) for name in names}
    for name, table in tables.items():  # no more rows: the tables have them
        arrays[f"table/{name}/keys"] = arrays[f"table/{name}/used_ms"] = np.empty(0, np.int64)
        arrays[f"table/{name}/values"] = np.empty((0, table.config.dim), np.float32)
        arrays[f"table/{name}/accumulator"] = np.empty(0, np.float32)
    shard.load([arrays], snapshot.meta(part))
    for name, table in tables.items():
        columns = columns_in(withheld, f"held/{name}/", WITHHELD_COLUMNS)
        for keys, values in table.blocks(_BLOCK):
            in_block = np.isin(columns["keys"], keys) if columns else None
            block = {column: array[in_block] for column, array in columns.items()}
            shard.published.load(name, keys, values, block)
