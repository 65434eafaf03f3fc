"""What changed between two exports of a shard, and an export put together from a full one and increments.

Arrays that belong to rows are told by their names: "GROUP/keys" and its columns beside it. An increment has
the rows that are new or differ in any bit, and as "GROUP/removed" the keys that are gone; all other arrays it
has whole. Rows come out in another order than they went in: no shard minds.
"""

# R rows

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.publish.withheld_rows import WITHHELD_COLUMNS
from parameter_server.table.table import ROW_COLUMNS

Arrays = Mapping[str, NDArray[Any]]
REMOVED: Final = "removed"
_COLUMNS: Final = {*ROW_COLUMNS, *WITHHELD_COLUMNS} - {"keys"}


def difference(before: Arrays, after: Arrays) -> dict[str, NDArray[Any]]:
    """The increment that makes ``after`` of ``before``."""
    out: dict[str, NDArray[Any]] = {}
    for name, array in after.items():
        if not _group(name, after):
            out[name] = array
    for group in _groups(after):
        columns = _columns(group, after)
        if group not in _groups(before) or columns != _columns(group, before):
            changed = np.ones(len(after[f"{group}keys"]), np.bool_)
            out[f"{group}{REMOVED}"] = before.get(f"{group}keys", np.empty(0, np.int64))
        else:
            changed, out[f"{group}{REMOVED}"] = _changed(group, columns, before, after)
        for column in ("keys", *columns):
            out[f"{group}{column}"] = after[f"{group}{column}"][changed]
    return out


def apply(before: Arrays, increment: Arrays) -> dict[str, NDArray[Any]]:
    """What ``increment`` was made from, the rows in some order."""
    out: dict[str, NDArray[Any]] = {}
    for name, array in increment.items():
        if not _group(name, increment):
            out[name] = array
    for group in _groups(increment):
        keys = increment[f"{group}keys"]
        old = before.get(f"{group}keys")
        columns = _columns(group, increment)
        if old is None or columns != _columns(group, before):
            out |= {f"{group}{c}": increment[f"{group}{c}"] for c in ("keys", *columns)}
            continue
        stays = ~np.isin(old, np.concatenate([keys, increment[f"{group}{REMOVED}"]]))
        for column in ("keys", *columns):
            name = f"{group}{column}"
            out[name] = np.concatenate([before[name][stays], increment[name]])
    return out


def _changed(
    group: str, columns: tuple[str, ...], before: Arrays, after: Arrays
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which rows of ``after`` (R,) are new or differ, and the keys that are gone."""
    old, new = before[f"{group}keys"], after[f"{group}keys"]
    if not len(old):
        return np.ones(len(new), np.bool_), old
    order = np.argsort(old)
    at = order[np.minimum(np.searchsorted(old, new, sorter=order), len(old) - 1)]
    changed = old[at] != new
    for column in columns:
        was, now = before[f"{group}{column}"], after[f"{group}{column}"]
        if was.dtype != now.dtype or was.shape[1:] != now.shape[1:]:
            changed[:] = True
        else:
            differs = _bits(was)[at] != _bits(now)
            changed |= differs.any(axis=tuple(range(1, differs.ndim)))
    return changed, old[~np.isin(old, new)]


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    """Floats as integers: two NaNs are equal, and 0 isn't -0."""
    contiguous = np.ascontiguousarray(array)
    return contiguous.view(f"u{array.dtype.itemsize}")


def _groups(arrays: Arrays) -> list[str]:
    return sorted(name[: -len("keys")] for name in arrays if name.endswith("/keys"))


def _columns(group: str, arrays: Arrays) -> tuple[str, ...]:
    return tuple(sorted(c for c in _COLUMNS if f"{group}{c}" in arrays))


def _group(name: str, arrays: Arrays) -> bool:
    """Whether an array belongs to rows."""
    group, _, column = name.rpartition("/")
    of_rows = column == "keys" or column == REMOVED or column in _COLUMNS
    return of_rows and f"{group}/keys" in arrays
