"""Application of incremental exports of a shard.

Row arrays are named "GROUP/keys" and "GROUP/COLUMN". An increment holds new or changed rows, removed keys as
"GROUP/removed", and all other arrays whole. Applying it reorders rows, which shards allow.
"""

# R rows

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.table.table import ROW_COLUMNS
from recsys.arrays.id_map import IdMap

Arrays = Mapping[str, NDArray[Any]]
REMOVED: Final = "removed"
_COLUMNS: Final = {*ROW_COLUMNS, *WITHHELD_COLUMNS} - {"keys"}


def apply(*files: Arrays) -> dict[str, NDArray[Any]]:
    """The export that a full one and its increments, in order, lead to; rows in any order."""
    last = files[-1]
    if len(files) == 1:
        return dict(last)
    out = {name: array for name, array in last.items() if not _is_row_array(name, last)}
    for group in _groups(last):
        columns, newer = _columns(group, last), IdMap()
        rows: list[tuple[Arrays, NDArray[np.bool_]]] = []
        for file in reversed(files):
            if f"{group}keys" not in file or _columns(group, file) != columns:
                break  # the file after it holds all rows
            keys = file[f"{group}keys"]
            rows.append((file, newer.find(keys) < 0))
            if file is not files[0]:
                newer.insert(keys)
                newer.insert(file[f"{group}{REMOVED}"])
        for column in ("keys", *columns):
            out[f"{group}{column}"] = np.concatenate([f[f"{group}{column}"][r] for f, r in rows])
    return out


def _groups(arrays: Arrays) -> list[str]:
    return sorted(name[: -len("keys")] for name in arrays if name.endswith("/keys"))


def _columns(group: str, arrays: Arrays) -> tuple[str, ...]:
    return tuple(sorted(c for c in _COLUMNS if f"{group}{c}" in arrays))


def _is_row_array(name: str, arrays: Arrays) -> bool:
    group, _, column = name.rpartition("/")
    return column in {"keys", REMOVED, *_COLUMNS} and f"{group}/keys" in arrays
