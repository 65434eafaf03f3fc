"""What serving needs of a snapshot: its rows as they were published."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.published import published_rows
from parameter_server.publish.rounding import round_dense
from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.storage import increments
from parameter_server.storage.snapshots import NoSnapshot, Snapshot, latest


class ServingRows(NamedTuple):
    """What serving needs of a snapshot: rows as they were published, no optimizer. ``tables`` are (keys (R,),
    values (R, D)) by name."""

    snapshot: Snapshot
    tables: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
    dense: NDArray[np.float32] | None


def load_rows(
    folder: Path, line: str, epoch: int | None = None, step: int | None = None
) -> ServingRows:
    """The rows and dense parameters of the newest usable snapshot (of an epoch, a step, if given), as they
    were published: what a replica holds that has followed every delta. Raises NoSnapshot."""
    snapshot, reasons = latest(folder, line, epoch, step)
    if snapshot is None:
        raise NoSnapshot(f"{folder}/{line}", reasons)
    dense = None
    found: dict[str, list[tuple[NDArray[np.int64], NDArray[np.float32]]]] = {}
    for part in range(snapshot.parts):
        format = snapshot.meta(part).get("delta_format", "fp32")
        arrays = snapshot.read(part, _is_served)
        if "dense/averaged" in arrays:
            _, dense = round_dense(arrays["dense/averaged"], format)
        for name, keys in arrays.items():
            if name.startswith("table/") and name.endswith("/keys"):
                table = name.removeprefix("table/").removesuffix("/keys")
                held = {c: arrays[f"held/{table}/{c}"] for c in WITHHELD_COLUMNS
                        if f"held/{table}/{c}" in arrays}  # fmt: skip
                rows = published_rows(keys, arrays[f"table/{table}/values"], held, format)
                found.setdefault(table, []).append(rows)
    tables = {
        table: (np.concatenate([k for k, _ in rows]), np.concatenate([v for _, v in rows]))
        for table, rows in found.items()
    }
    return ServingRows(snapshot, tables, dense)


def _is_served(name: str) -> bool:
    """All but the optimizer's."""
    rows = ("keys", "values", increments.REMOVED)
    return name.startswith("held/") or name == "dense/averaged" or name.endswith(rows)
