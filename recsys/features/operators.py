"""Operators of declared features: their columns, what each event adds to them, and derived columns.

Counters of values and of distinct members are kinds of counters, so they decay as all others do. The newest
event of a kind has a row of its own, whose time is the event's: its key is crossed with the kind.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import copysign, log1p
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys import plugins
from recsys.events.hashing import key_of
from recsys.features.columns import Entity
from recsys.features.feature_kernels import entity_keys

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]

# Operators of cells, as ``feature_kernels.operate`` reads them.
AGAINST: Final = 0
SUM: Final = 1
MEAN: Final = 2
COUNT: Final = 3
SINCE: Final = 4
VALUE: Final = 5
# Operators of derived columns with their numbers of columns.
EXPRESSIONS: Final = {"difference": 2, "ratio": 2, "log": 1, "bucket": 1}
FUNCTION: Final = "function"
_LARGEST: Final = 1e9
_BOUND: Final = 100.0  # bounds derived columns


@dataclass(frozen=True)
class Derived:
    """A column computed from others: an expression of ``EXPRESSIONS``, or a Python function with its
    version. ``edges``: of buckets, ascending. ``call``: ``name@version`` of an ``Operator``."""

    name: str
    operator: str
    columns: tuple[str, ...]
    edges: tuple[float, ...] = ()
    call: str = ""


class Operator(Protocol):
    """Plug-in of the group ``recsys.operators``: computes a column from others. It reads its arguments only.

    A row's result doesn't depend on the other rows: an answer computes all candidates, the audit shown ones.
    """

    version: str  # in the digest of the feature set, with the name
    columns: int  # number of columns that it reads

    def __call__(self, *columns_N: Floats) -> Floats:
        """A number (N,) for each row, cut to ±100; one that isn't finite makes all 0. ``columns_N``: those
        declared (docs/reference/app.md), mostly logarithms and log odds."""


@dataclass(frozen=True)
class Cell:
    """A column of an operator over an entity, given by its index. ``measure``: as of its column. ``kind``: of
    counters; of ``AGAINST`` the index of the label; of ``SINCE`` and ``VALUE`` the key of the kind of event.
    ``base``: another entity."""

    name: str
    measure: tuple[Any, ...]
    operator: int
    entity: int
    kind: int = 0
    speed: int = 0
    base: int = 0


def value_kinds(kind: str, value: str) -> tuple[str, str]:
    """Kinds of counters of a value: its sum, and the number of events that have one. No event kind has such a
    name."""
    return f"sum({kind}.{value})", f"number({kind}.{value})"


def count_kind(kind: str) -> str:
    """Kind of counter of the events of a kind."""
    return f"count({kind})"


def distinct_kind(kind: str, member: str) -> str:
    """Kind of counter of distinct members."""
    return f"distinct({kind}.{member})"


def last_key(kind: str) -> int:
    """Key that an entity's is crossed with: that of its newest event of a kind."""
    return key_of("last", kind)


class EventKeys:
    """Keys of an entity for one event, crossed with a seed (0: none). ``starts``: of each item slot the first
    column, and their number."""

    def __init__(self, entity: Entity, starts: Mapping[str, tuple[int, int]], seed: int) -> None:
        self._left = entity.left
        start, width = starts[entity.right]
        self._row = np.array([entity.left != "", 0, start, width, seed], np.int64)

    def of(self, keys_I: Keys, lefts: Mapping[str, int]) -> Keys:
        """The keys, each once, for an item's keys and the event's other halves; ``lefts`` has that of all
        under ""."""
        row, out = self._row.copy(), np.empty(max(1, self._row[3]), np.int64)
        row[1] = lefts.get(self._left, 0)
        return out[: entity_keys(keys_I, row, out)]


def bounded(value: float | msgspec.UnsetType) -> float:
    """An event's value, so that sums of float32 stay finite; 0 without one."""
    return 0.0 if value is msgspec.UNSET else min(max(value, -_LARGEST), _LARGEST)


def signed_log(value: float) -> float:
    """A number on a logarithmic scale, on either side of 0."""
    return copysign(log1p(abs(value)), value)


class Derivation:
    """Computes derived columns from those before them. ``errors``: calls of functions that failed, by column;
    these give 0."""

    def __init__(self, derived: Sequence[Derived], names: Sequence[str]) -> None:
        at = {name: n for n, name in enumerate(names)}
        self.errors: Counter[str] = Counter()
        self._steps = []
        for one in derived:
            function = plugins.load_version(plugins.OPERATORS, one.call) if one.call else None
            self._steps.append((one, at[one.name], [at[name] for name in one.columns], function))

    def write(self, dense: Floats, out: Floats) -> None:
        """Computes the columns from those in ``dense``, which may be ``out`` itself."""
        for one, at, columns, function in self._steps:
            values = [dense[:, column].copy() for column in columns]
            if function is None:
                result = _expression(one, values)
            else:
                result = self._called(one.name, function, values)
            out[:, at] = np.clip(result, -_BOUND, _BOUND)

    def _called(self, name: str, function: Callable[..., Any], values: list[Floats]) -> Floats:
        try:
            result = np.broadcast_to(np.asarray(function(*values), np.float32), values[0].shape)
            if np.isfinite(result).all():
                return result
        except Exception:  # whatever an app's own code raises must not end an answer
            pass
        self.errors[name] += 1
        return np.zeros_like(values[0])


def _expression(one: Derived, values: list[Floats]) -> Floats:
    """Its values (N,), from those of its columns."""
    first, other = values[0], values[-1]
    if one.operator == "difference":
        return first - other
    if one.operator == "ratio":
        is_small = np.abs(other) <= np.float32(1e-6)
        return np.where(is_small, np.float32(0), first / np.where(is_small, np.float32(1), other))
    if one.operator == "log":
        return np.copysign(np.log1p(np.abs(first)), first)
    reached = np.searchsorted(np.array(one.edges, np.float32), first, "right")
    return (reached / len(one.edges)).astype(np.float32)
