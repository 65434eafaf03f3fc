"""Interpolates the weights of an offline model and of the online line, row by row.

Takes exports of ``Shard.export`` and gives one. Linear interpolation between parents (Izmailov et al. 2018,
Wortsman et al. 2022) is meaningful only for two descendants of one snapshot. A row that online traffic used
often since is better trained there:

    w(n) = rare + (frequent - rare) n / (n + half)      of the online parent, for a row with n examples since

Legend: R rows of a table, D dimension, P dense parameters, N online, O offline.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.newton import weights_of
from parameter_server.table.routing import Keys
from parameter_server.table.sketch import SKETCH_COLUMNS
from parameter_server.table.table import ROW_COLUMNS
from recsys.arrays.id_map import Arrays

Mask = NDArray[np.bool_]
Doubles = NDArray[np.float64]
_DENSE: Final = ("values", "averaged", "m", "v")
_NO_KEYS: Final = np.empty(0, np.int64)


def _check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"{name} is {share}, expected a share from 0 (offline) to 1 (online)")


@dataclass(frozen=True)
class Blend:
    """The online parent's share of a row: ``rare`` if no example used the row since the ancestor, rising
    towards ``frequent`` with the examples, half of the way at ``half`` examples."""

    rare: float = 0.5
    frequent: float = 0.5
    half: float = 10.0

    def __post_init__(self) -> None:
        _check_share("rare", self.rare)
        _check_share("frequent", self.frequent)
        if self.half <= 0:
            raise ValueError(f"half is {self.half}, expected a positive number of examples")

    def shares(self, uses_R: NDArray[Any]) -> Doubles:
        """w (R,) of rows, by the number of examples that used each."""
        weight = uses_R / (uses_R + self.half)
        shares: Doubles = (1 - weight) * self.rare + weight * self.frequent
        return shares


@dataclass(frozen=True)
class Blends:
    """The blend of all rows, and the online parent's share of the dense parameters."""

    rows: Blend = Blend()
    dense: float = 0.5

    def __post_init__(self) -> None:
        _check_share("dense", self.dense)


@dataclass(frozen=True)
class Parent:
    """An export. The parts of a sharded line are merged one by one, each with the same part of the others."""

    arrays: Arrays
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Since:
    """Changes online since the ancestor, by table: keys with their numbers of uses, and keys that lost their
    row."""

    uses: Mapping[str, tuple[Keys, NDArray[Any]]] = field(default_factory=dict)
    removed: Mapping[str, Keys] = field(default_factory=dict)


def interpolate(
    online: Parent, offline: Parent, ancestor: Parent, blends: Blends, since: Since | None = None
) -> Parent:
    """Merges two parents, both trained from ``ancestor``, into one that continues at the online one's step.
    Weights and optimizer state are blended alike; the newer time of use wins. Rows new in a parent are kept,
    and rows removed online stay away; a row removed offline stays away unless it was used online since.
    A row that was removed and made again online has nothing of the offline one: its user was erased and came
    back. Sightings of ids without a row are the online parent's. Raises ValueError if the three aren't of one
    model."""
    _check_same_model(online.arrays, offline.arrays, ancestor.arrays)
    since = since or Since()
    clock_ms = int(ancestor.meta["clock_ms"])
    arrays: Arrays = {}
    for name in tables_in(online.arrays):
        own, other, old = (_table(parent.arrays, name) for parent in (online, offline, ancestor))
        rows = _MergedRows(own, other, old, clock_ms, since.removed.get(name, _NO_KEYS))
        uses = _uses(rows.keys, *since.uses.get(name, (_NO_KEYS, _NO_KEYS)))
        columns = rows.columns(blends.rows.shares(uses))
        columns |= {column: own[column] for column in SKETCH_COLUMNS if column in own}
        arrays |= {f"table/{name}/{column}": array for column, array in columns.items()}
    if "dense/values" in online.arrays:
        arrays |= _dense(online.arrays, offline.arrays, blends.dense)
    newest_ms = max(online.meta["clock_ms"], offline.meta["clock_ms"])
    return Parent(arrays, dict(online.meta) | {"clock_ms": newest_ms})


def tables_in(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """Names of the tables of an export, in order."""
    names = (name.split("/") for name in arrays)
    return sorted({parts[1] for parts in names if parts[0] == "table"})


class _MergedRows:
    """Aligned rows of a table: the online parent's that stay, in its order, then those only offline has."""

    def __init__(
        self, online: Arrays, offline: Arrays, ancestor: Arrays, clock_ms: int, removed: Keys
    ) -> None:
        """``clock_ms`` of the ancestor: an online row with a newer time was used since."""
        remains = ~np.isin(offline["keys"], removed)
        offline = {name: c[remains] if name in ROW_COLUMNS else c for name, c in offline.items()}
        stays = (
            np.isin(online["keys"], offline["keys"])
            | ~np.isin(online["keys"], ancestor["keys"])
            | (online["used_ms"] > clock_ms)
        )
        comes = ~np.isin(offline["keys"], online["keys"])
        comes &= ~np.isin(offline["keys"], ancestor["keys"])
        self.keys: Keys = np.concatenate([online["keys"][stays], offline["keys"][comes]])
        self._online, self._offline = online, offline
        self._in_online, self._at_online = _find(online["keys"], self.keys)
        self._in_offline, self._at_offline = _find(offline["keys"], self.keys)

    def columns(self, shares_R: Doubles) -> Arrays:
        """The merged columns: rows of one parent alone unchanged, the others interpolated."""
        shares_R = np.where(self._in_offline, shares_R, 1.0)
        shares_R = np.where(self._in_online, shares_R, 0.0)
        out: Arrays = {"keys": self.keys}
        for name in ROW_COLUMNS[1:]:
            n = _gather(self._online[name], self._at_online)
            o = _gather(self._offline[name], self._at_offline)
            if name == "used_ms":
                only = np.where(self._in_online, n, o)
                out[name] = np.where(self._in_online & self._in_offline, np.maximum(n, o), only)
            else:
                out[name] = _lerp(o, n, shares_R if n.ndim == 1 else shares_R[:, None])
        return out


def _lerp(a: NDArray[Any], b: NDArray[Any], share: NDArray[Any] | float) -> NDArray[Any]:
    """The point at ``share`` of the way from a to b: at 0 a, and at 1 b, bit for bit."""
    inside = (a + share * (b.astype(np.float64) - a)).astype(a.dtype)
    out: NDArray[Any] = np.where(np.equal(share, 0), a, np.where(np.equal(share, 1), b, inside))
    return out


def _find(own: Keys, keys: Keys) -> tuple[Mask, Keys]:
    """Finds keys among ``own``: whether each is there, and its index, 0 for the others."""
    if not len(own):
        return np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.int64)
    order = np.argsort(own, kind="stable")
    at = order[np.minimum(np.searchsorted(own, keys, sorter=order), len(own) - 1)]
    is_found = own[at] == keys
    return is_found, np.where(is_found, at, 0)


def _gather(column: NDArray[Any], at: Keys) -> NDArray[Any]:
    """Rows of a column; zeros if it is empty."""
    if not len(column):
        return np.zeros((len(at), *column.shape[1:]), column.dtype)
    out: NDArray[Any] = column[at]
    return out


def _uses(keys: Keys, used: Keys, counts: NDArray[Any]) -> NDArray[Any]:
    is_used, at = _find(used, keys)
    return np.where(is_used, _gather(counts, at), 0)


def _dense(online: Arrays, offline: Arrays, share: float) -> Arrays:
    """Blended parameters; the choice model is the online parent's, since no offline job learns it."""
    names = [f"dense/{column}" for column in _DENSE]
    out = {name: _lerp(offline[name], online[name], share) for name in names}
    curvature = online["dense/curvature"]
    weights = weights_of(len(curvature) + 1) if len(curvature) else 0
    first = len(online["dense/values"]) - weights
    for name in names:
        out[name][first:] = online[name][first:]
    out["dense/curvature"] = curvature.copy()
    steps = np.rint(_lerp(offline["dense/t"], online["dense/t"], share))
    return out | {"dense/t": steps.astype(np.int64)}


def _table(arrays: Mapping[str, NDArray[Any]], name: str) -> Arrays:
    prefix = f"table/{name}/"
    return {k.removeprefix(prefix): array for k, array in arrays.items() if k.startswith(prefix)}


def _check_same_model(*parents: Arrays) -> None:
    """Raises ValueError if the shapes of the exports differ."""
    shapes = [
        {name: array.shape[1:] for name, array in arrays.items() if name.endswith("/values")}
        | {name: array.shape for name, array in arrays.items() if name == "dense/values"}
        for arrays in parents
    ]
    for which, shape in zip(("offline parent", "ancestor"), shapes[1:], strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"the {which} has {shape}, the online parent {shapes[0]}: they are of two models; train the "
                "candidate with the configuration of the live line"
            )
