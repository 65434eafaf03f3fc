"""All published rows of a snapshot in memory, put together from whole arrays: what mapped rows must equal."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.published import published_rows
from parameter_server.publish.rounding import round_dense
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.storage.snapshots import Snapshot, require
from parameter_server.table.dense import SENT
from parameter_server.table.table import columns_in


class LoadedRows(NamedTuple):
    """``tables``: (keys (R,), values (R, D)) by name."""

    snapshot: Snapshot
    tables: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
    dense: NDArray[np.float32] | None


def load_rows(folder: Path, line: str, epoch: int | None = None, step: int | None = None) -> LoadedRows:
    snapshot = require(folder, line, epoch, step)
    dense = None
    parts: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for part in range(snapshot.parts):
        format = snapshot.meta(part).get("delta_format", "fp32")
        arrays = snapshot.read(part)
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
    return LoadedRows(snapshot, tables, dense)
