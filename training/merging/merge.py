"""Merges an offline model with what was learned online since: catch-up, and interpolation of weights.

Both take exports of ``Shard.export`` and give one, which any shard of the same tables loads and learns on
from. **Catch-up** starts from the offline model at offset b and learns the steps after b, as they were cut:
it needs nothing in common. **Interpolation** goes from one parent's weights to the other's in a straight line
(Izmailov et al. 2018, Wortsman et al. 2022), and that means something only between two descendants of one
snapshot: two lines that began apart give the same answer by other numbers, and the middle of them gives none.

    w(n) = rare + (frequent - rare) n / (n + half)      of the online parent, for a row with n examples since

A row that online traffic used often since is better known there, one that it hardly touched is better known
to the parent that saw it several times. The averages of logits of two lines are in training/merging/merge_variants.py.

Legend: R rows of a table, D dimension, P dense parameters, N online, O offline.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.sketch import SKETCH_COLUMNS
from parameter_server.table.table import ROW_COLUMNS, Arrays, digest_of_exports
from training.continual.learner import Lane
from training.continual.local_line import Floats, Keys, LocalLine

Mask = NDArray[np.bool_]
Doubles = NDArray[np.float64]
_DENSE: Final = ("values", "averaged", "m", "v")


class NoCommonAncestor(ValueError):
    """Two parents whose weights can't be interpolated."""


@dataclass(frozen=True)
class Blend:
    """How much of the online parent a row gets: ``rare`` where no example used it since the ancestor, towards
    ``frequent`` as more did, half of the way at ``half`` examples."""

    rare: float = 0.5
    frequent: float = 0.5
    half: float = 10.0

    def __post_init__(self) -> None:
        for name in ("rare", "frequent"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise ValueError(
                    f"{name} is {share}, expected a share from 0 (offline) to 1 (online)"
                )
        if self.half <= 0:
            raise ValueError(f"half is {self.half}, expected a positive number of examples")

    def shares(self, uses_R: NDArray[Any]) -> Doubles:
        """w (R,) of rows that so many examples used."""
        known = uses_R / (uses_R + self.half)
        shares: Doubles = (1 - known) * self.rare + known * self.frequent
        return shares


@dataclass(frozen=True)
class Blends:
    """One for each table, ``rows`` where none is named, and the online parent's share of the dense ones."""

    rows: Blend = Blend()
    dense: float = 0.5
    tables: Mapping[str, Blend] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.dense <= 1:
            raise ValueError(
                f"dense is {self.dense}, expected a share from 0 (offline) to 1 (online)"
            )

    @classmethod
    def all(cls, share: float) -> "Blends":
        """The same share of everything."""
        return cls(Blend(share, share), share)


@dataclass(frozen=True)
class Parent:
    """An export and the snapshots that it came from, by digest: ``descent``, the oldest first.

    Of a line in several shards, parts are merged one by one, each with the same part of the others.
    """

    arrays: Arrays
    meta: Mapping[str, Any]
    descent: tuple[str, ...] = ()

    def child(self, arrays: Arrays, meta: Mapping[str, Any]) -> "Parent":
        """What was trained from this one."""
        return Parent(arrays, meta, (*self.descent, export_digest(self.arrays)))


@dataclass(frozen=True)
class Since:
    """What happened online since the ancestor, where it is known: by table, keys with how many examples used
    each, and keys that lost their row (tombstones)."""

    uses: Mapping[str, tuple[Keys, NDArray[Any]]] = field(default_factory=dict)
    removed: Mapping[str, Keys] = field(default_factory=dict)


@dataclass(frozen=True)
class Replayed:
    """A step to learn again: its time, its lanes, and the keys by table whose rows leave with it."""

    time_ms: int
    lanes: Sequence[Lane]
    forget: Mapping[str, Keys] = field(default_factory=dict)


def export_digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of rows, optimizer and dense parameters of an export, in whatever order its rows are."""
    sha = hashlib.sha256()
    for name in tables_in(arrays):
        sha.update(name.encode())
        sha.update(digest_of_exports([_table(arrays, name)]).encode())
    for name in sorted(key for key in arrays if key.startswith("dense/")):
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


def export_at_step(export: tuple[Arrays, dict[str, Any]], step: int) -> tuple[Arrays, dict[str, Any]]:
    """An offline model as if it had learned up to a step of the live line, the one that ended at offset b.
    Its own steps don't count, and nothing of it is held back."""
    arrays, meta = export
    kept = {name: array for name, array in arrays.items() if not name.startswith("held/")}
    return kept, meta | {"step": step}


def catch_up(line: LocalLine, steps: Iterable[Replayed]) -> list[list[Floats]]:
    """Learns the steps after b. Returns the probabilities (B, L) of each lane from before it was learned, by
    which a candidate can be judged that nobody has seen."""
    return [line.learn(step.time_ms, step.lanes, step.forget) for step in steps]


def common_ancestor(online: Parent, offline: Parent) -> str:
    """The digest of the newest snapshot that both parents come from. Raises NoCommonAncestor."""
    for digest in reversed(online.descent):
        if digest in offline.descent:
            return digest
    raise NoCommonAncestor(
        "the parents have no snapshot in common, so that the middle between their weights means nothing; "
        "start the offline job from a snapshot of the online line, or merge by catch-up, or by averaging "
        "logits and distilling them"
    )


def interpolate(
    online: Parent, offline: Parent, ancestor: Parent, blends: Blends, since: Since | None = None
) -> Parent:
    """The parent between two, which stands where the online one does.

    Weights and optimizer state go alike; a time of use is the newer one. Rows that are new in a parent are
    kept, and those that left online stay away; one that left offline stays away unless it was used online
    since. Sightings of ids without a row are the online parent's, and nothing is held back from replicas: a
    merged line begins with a snapshot, which they read whole. Raises NoCommonAncestor, and ValueError where
    the three aren't of one model.
    """
    its = export_digest(ancestor.arrays)
    common_ancestor(online, offline)
    if its not in online.descent or its not in offline.descent:
        raise NoCommonAncestor(
            f"the ancestor given is {its[:12]}, which isn't a snapshot that both parents come from; give "
            f"{common_ancestor(online, offline)[:12]}"
        )
    _check_alike(online.arrays, offline.arrays, ancestor.arrays)
    since = since or Since()
    arrays: Arrays = {}
    for name in tables_in(online.arrays):
        own, its_offline, old = (
            _table(parent.arrays, name) for parent in (online, offline, ancestor)
        )
        clock_ms, removed = int(ancestor.meta["clock_ms"]), since.removed.get(name, _NONE)
        rows = _Rows(own, its_offline, old, clock_ms, removed)
        shares = blends.tables.get(name, blends.rows).shares(
            _uses(rows.keys, since.uses.get(name, (_NONE, _NONE)))
        )
        arrays |= {f"table/{name}/{column}": its for column, its in rows.columns(shares).items()}
        arrays |= {f"table/{name}/{k}": own[k] for k in SKETCH_COLUMNS if k in own}
    if "dense/values" in online.arrays:
        arrays |= _dense(online.arrays, offline.arrays, blends.dense)
    newest_ms = max(online.meta["clock_ms"], offline.meta["clock_ms"])
    meta = dict(online.meta) | {"clock_ms": newest_ms}
    return Parent(
        arrays, meta, (*online.descent, export_digest(online.arrays), export_digest(offline.arrays))
    )


def tables_in(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    """The names of the tables of an export, in order."""
    names = (name.split("/") for name in arrays)
    return sorted({parts[1] for parts in names if parts[0] == "table"})


_NONE: Final = np.empty(0, np.int64)


class _Rows:
    """One table's rows of two parents beside each other: those of the online one that stay, in its order,
    then those that only the offline one has."""

    def __init__(
        self, online: Arrays, offline: Arrays, ancestor: Arrays, clock_ms: int, removed: Keys
    ) -> None:
        """``clock_ms`` of the ancestor: an online row with a newer time was used since."""
        stays = (
            np.isin(online["keys"], offline["keys"])
            | ~np.isin(online["keys"], ancestor["keys"])
            | (online["used_ms"] > clock_ms)
        )
        comes = ~np.isin(offline["keys"], online["keys"])
        comes &= ~np.isin(offline["keys"], ancestor["keys"]) & ~np.isin(offline["keys"], removed)
        self.keys: Keys = np.concatenate([online["keys"][stays], offline["keys"][comes]])
        self._online, self._offline = online, offline
        self._in_online, self._at_online = _places(online["keys"], self.keys)
        self._in_offline, self._at_offline = _places(offline["keys"], self.keys)

    def columns(self, shares_R: Doubles) -> Arrays:
        """The merged columns: a row of one parent alone as it is, the others in between."""
        shares_R = np.where(self._in_offline, shares_R, 1.0)
        shares_R = np.where(self._in_online, shares_R, 0.0)
        out: Arrays = {"keys": self.keys}
        for name in ROW_COLUMNS[1:]:
            n = _taken(self._online[name], self._at_online)
            o = _taken(self._offline[name], self._at_offline)
            if name == "used_ms":
                only = np.where(self._in_online, n, o)
                out[name] = np.where(self._in_online & self._in_offline, np.maximum(n, o), only)
            else:
                out[name] = between(o, n, shares_R if n.ndim == 1 else shares_R[:, None])
        return out


def between(a: NDArray[Any], b: NDArray[Any], share: NDArray[Any] | float) -> NDArray[Any]:
    """The point at ``share`` of the way from a to b: at 0 a, and at 1 b, bit for bit."""
    inside = (a + share * (b.astype(np.float64) - a)).astype(a.dtype)
    out: NDArray[Any] = np.where(np.equal(share, 0), a, np.where(np.equal(share, 1), b, inside))
    return out


def _places(own: Keys, keys: Keys) -> tuple[Mask, Keys]:
    """Which of the keys are among ``own``, and where: the first place for those that aren't."""
    order = np.argsort(own, kind="stable")
    at = np.searchsorted(own, keys, sorter=order)
    at = order[np.minimum(at, len(own) - 1)] if len(own) else np.zeros(len(keys), np.int64)
    there = own[at] == keys if len(own) else np.zeros(len(keys), np.bool_)
    return there, np.where(there, at, 0)


def _taken(column: NDArray[Any], at: Keys) -> NDArray[Any]:
    """Rows at places that mean nothing where there is none."""
    if not len(column):
        return np.zeros((len(at), *column.shape[1:]), column.dtype)
    out: NDArray[Any] = column[at]
    return out


def _uses(keys: Keys, uses: tuple[Keys, NDArray[Any]]) -> NDArray[Any]:
    known, counts = uses
    there, at = _places(known, keys)
    out: NDArray[Any] = np.where(there, counts[at], 0) if len(known) else np.zeros(len(keys))
    return out


def _dense(online: Arrays, offline: Arrays, share: float) -> Arrays:
    out = {
        f"dense/{name}": between(offline[f"dense/{name}"], online[f"dense/{name}"], share)
        for name in _DENSE
    }
    steps = np.rint(between(offline["dense/t"], online["dense/t"], share))
    return out | {"dense/t": steps.astype(np.int64)}


def _table(arrays: Mapping[str, NDArray[Any]], name: str) -> Arrays:
    start = f"table/{name}/"
    return {key.removeprefix(start): its for key, its in arrays.items() if key.startswith(start)}


def _check_alike(*parents: Arrays) -> None:
    """Raises ValueError where two exports aren't of one model."""
    shapes = [
        {name: array.shape[1:] for name, array in arrays.items() if name.endswith("/values")}
        | {name: array.shape for name, array in arrays.items() if name == "dense/values"}
        for arrays in parents
    ]
    for which, its in zip(("offline parent", "ancestor"), shapes[1:], strict=True):
        if its != shapes[0]:
            raise ValueError(
                f"the {which} has {its}, the online parent {shapes[0]}: they are of two models; train the "
                "candidate with the configuration of the live line"
            )
