"""Compares two candidates: provenance, configuration and weights."""

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
Rows = tuple[NDArray[np.int64], NDArray[np.float32]]  # keys (R,) ascending and values (R, D)
_SMALLEST: Final = 1e-12  # of a norm in a denominator


@dataclass(frozen=True)
class TableDiff:
    """``distance``: mean of ‖a − b‖ / max(‖a‖, ‖b‖) over common rows, 0 to 2; None if there are none."""

    rows_a: int
    rows_b: int
    only_a: int
    only_b: int
    distance: float | None


@dataclass(frozen=True)
class Diff:
    """``fields``: differing fields of the provenance, by dotted name, both values. ``dense``: the distance of
    the dense parameters; None if their numbers differ."""

    fields: dict[str, tuple[Any, Any]]
    tables: dict[str, TableDiff]
    dense: float | None


def diff(a: Provenance, b: Provenance, arrays_a: Sequence[Arrays], arrays_b: Sequence[Arrays]) -> Diff:
    """Compares two candidates; arrays are those of all parts of their snapshots."""
    tables_a, tables_b = rows_of(arrays_a), rows_of(arrays_b)
    none: Rows = np.empty(0, np.int64), np.empty((0, 0), np.float32)
    names = sorted({*tables_a, *tables_b})
    tables = {n: _table(tables_a.get(n, none), tables_b.get(n, none)) for n in names}
    return Diff(_fields(a, b), tables, _dense(dense_of(arrays_a), dense_of(arrays_b)))


def arrays_of(snapshot: Snapshot) -> list[dict[str, NDArray[Any]]]:
    """Reads the arrays of a snapshot that ``diff`` needs."""

    def wanted(name: str) -> bool:
        return name.endswith(("/keys", "/values")) and not name.startswith("held/")

    return [snapshot.read(part, wanted) for part in range(snapshot.parts)]


def rows_of(parts: Sequence[Arrays]) -> dict[str, Rows]:
    """Keys and values by table."""
    tables: dict[str, Rows] = {}
    names = sorted({name.split("/")[1] for part in parts for name in part if name.count("/") == 2})
    for name in names:
        keys = np.concatenate([part[f"table/{name}/keys"] for part in parts])
        values = np.concatenate([part[f"table/{name}/values"] for part in parts])
        order = np.argsort(keys)
        tables[name] = keys[order], values[order]
    return tables


def dense_of(parts: Sequence[Arrays]) -> NDArray[np.float32] | None:
    """The dense training parameters; None if no part has them."""
    return next((part["dense/values"] for part in parts if "dense/values" in part), None)


def _table(a: Rows, b: Rows) -> TableDiff:
    (keys_a, rows_a), (keys_b, rows_b) = a, b
    both, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    distance = None
    if len(both) and rows_a.shape[1] == rows_b.shape[1]:
        apart = np.linalg.norm(rows_a[at_a] - rows_b[at_b], axis=1)
        # Relative to the larger: a row untrained in one of them is zero there.
        norm_a, norm_b = (np.linalg.norm(r, axis=1) for r in (rows_a[at_a], rows_b[at_b]))
        larger = np.maximum(np.maximum(norm_a, norm_b), _SMALLEST)
        distance = float(np.mean(np.where(apart > 0, apart / larger, 0.0)))
    only_a, only_b = len(keys_a) - len(both), len(keys_b) - len(both)
    return TableDiff(len(keys_a), len(keys_b), only_a, only_b, distance)


def _dense(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> float | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    larger = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), _SMALLEST)
    return float(np.linalg.norm(a - b) / larger)


def _fields(a: Provenance, b: Provenance) -> dict[str, tuple[Any, Any]]:
    flat_a, flat_b = (flattened(msgspec.to_builtins(p, str_keys=True)) for p in (a, b))
    values = {name: (flat_a.get(name), flat_b.get(name)) for name in {**flat_a, **flat_b}}
    return {name: pair for name, pair in values.items() if name != "name" and pair[0] != pair[1]}


def flattened(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values by dotted name, those of inner dicts in place of the dict."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        flat |= flattened(value, f"{above}{name}.") if inner else {above + name: value}
    return flat
