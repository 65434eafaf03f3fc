"""How two candidates differ: in what they learned from, in configuration, in weights."""

# R rows of a table, D dimension

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.storage.snapshots import Snapshot
from training.candidates.registry import Provenance

Arrays = Mapping[str, NDArray[Any]]
_SMALLEST: Final = 1e-12  # a norm that is divided by


@dataclass(frozen=True)
class TableDiff:
    """``distance``: of rows in both, the mean of ‖a − b‖ / max(‖a‖, ‖b‖), 0 to 2; None where there is no
    such row, or their dimensions differ."""

    rows_a: int
    rows_b: int
    only_a: int
    only_b: int
    distance: float | None


@dataclass(frozen=True)
class Diff:
    """``fields``: of the provenance, by dotted name, both values. ``dense``: the distance of the dense
    parameters; None where their numbers differ."""

    fields: dict[str, tuple[Any, Any]]
    tables: dict[str, TableDiff]
    dense: float | None


def diff(
    a: Provenance, b: Provenance, arrays_a: Sequence[Arrays], arrays_b: Sequence[Arrays]
) -> Diff:
    """Compares two candidates; arrays are those of all parts of their snapshots."""
    tables_a, tables_b = rows_of(arrays_a), rows_of(arrays_b)
    nothing = np.empty(0, np.int64), np.empty((0, 0), np.float32)
    tables = {
        name: _table(*tables_a.get(name, nothing), *tables_b.get(name, nothing))
        for name in sorted({*tables_a, *tables_b})
    }
    return Diff(_fields(a, b), tables, _dense(dense_of(arrays_a), dense_of(arrays_b)))


def arrays_of(snapshot: Snapshot) -> list[dict[str, NDArray[Any]]]:
    """All that ``diff`` needs of a snapshot."""

    def wanted(name: str) -> bool:
        return name.endswith(("/keys", "/values")) and not name.startswith("held/")

    return [snapshot.read(part, wanted) for part in range(snapshot.parts)]


def rows_of(parts: Sequence[Arrays]) -> dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Keys (R,) ascending and values (R, D), by table."""
    found: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
    names = sorted({name.split("/")[1] for part in parts for name in part if name.count("/") == 2})
    for name in names:
        keys = np.concatenate([part[f"table/{name}/keys"] for part in parts])
        values = np.concatenate([part[f"table/{name}/values"] for part in parts])
        order = np.argsort(keys)
        found[name] = keys[order], values[order]
    return found


def dense_of(parts: Sequence[Arrays]) -> NDArray[np.float32] | None:
    """The dense parameters that learning goes on from; None where no part has them."""
    return next((part["dense/values"] for part in parts if "dense/values" in part), None)


def _table(
    keys_a: NDArray[np.int64],
    rows_a: NDArray[np.float32],
    keys_b: NDArray[np.int64],
    rows_b: NDArray[np.float32],
) -> TableDiff:
    both, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    distance = None
    if len(both) and rows_a.shape[1] == rows_b.shape[1]:
        apart = np.linalg.norm(rows_a[at_a] - rows_b[at_b], axis=1)
        # By the larger: a row that learned nothing in one of them is zero there.
        of = np.maximum(np.linalg.norm(rows_a[at_a], axis=1), np.linalg.norm(rows_b[at_b], axis=1))
        distance = float(np.mean(np.where(apart > 0, apart / np.maximum(of, _SMALLEST), 0.0)))
    only_a, only_b = len(keys_a) - len(both), len(keys_b) - len(both)
    return TableDiff(len(keys_a), len(keys_b), only_a, only_b, distance)


def _dense(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> float | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    of = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), _SMALLEST)
    return float(np.linalg.norm(a - b) / of)


def _fields(a: Provenance, b: Provenance) -> dict[str, tuple[Any, Any]]:
    ours, theirs = (_flat(msgspec.to_builtins(its, str_keys=True)) for its in (a, b))
    names = [name for name in {**ours, **theirs} if name != "name"]
    return {
        name: (ours.get(name), theirs.get(name))
        for name in names
        if ours.get(name) != theirs.get(name)
    }


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{above}{name}.")
        else:
            out[above + name] = value
    return out
