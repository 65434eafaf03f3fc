"""Operators of declared features: their columns, what each event adds to them, and derived columns.

Counters of values and of distinct members are kinds of counters, so they decay as all others do. The newest
event of a kind has a row of its own, whose time is the event's: its key is crossed with the kind.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import copysign, log1p
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.hashing import key_of
from recsys.features.feature_kernels import derive, entity_keys
from recsys.features.running_rates import USER, Entity

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]

# Operators of cells, as ``feature_kernels.operate`` reads them.
AGAINST: Final = 0
SUM: Final = 1
MEAN: Final = 2
DISTINCT: Final = 3
SINCE: Final = 4
VALUE: Final = 5
# Operators of derived columns with their numbers of columns, as ``feature_kernels.derive`` reads them.
EXPRESSIONS: Final = {"difference": 2, "ratio": 2, "log": 1, "bucket": 1}
FUNCTION: Final = "function"
LARGEST: Final = 1e9  # bounds values, so that sums of float32 stay finite
_BOUND: Final = 100.0  # bounds derived columns


@dataclass(frozen=True)
class Derived:
    """A column computed from others: an expression of ``EXPRESSIONS``, or a Python function with its
    version. ``edges``: of buckets, ascending. ``call``: ``module:name@version``."""

    name: str
    operator: str
    columns: tuple[str, ...]
    edges: tuple[float, ...] = ()
    call: str = ""


@dataclass(frozen=True)
class Cell:
    """A column of an operator over an entity, given by its index. ``kind``: of counters; of ``AGAINST`` the
    index of the label; of ``SINCE`` and ``VALUE`` that of the kind of event. ``base``: another entity."""

    name: str
    operator: int
    entity: int
    kind: int = 0
    speed: int = 0
    base: int = 0


def value_kinds(kind: str, value: str) -> tuple[str, str]:
    """Kinds of counters of a value: its sum, and the number of events that have one. No event kind has such a
    name."""
    return f"sum({kind}.{value})", f"number({kind}.{value})"


def distinct_kind(kind: str, member: str) -> str:
    """Kind of counter of distinct members."""
    return f"distinct({kind}.{member})"


def cells_of(
    entities: Sequence[Entity],
    kinds: Sequence[str],
    labels: Sequence[str],
    speeds: Sequence[str],
    against: Sequence[tuple[str, str]],
    values: Sequence[tuple[str, str]],
    last: Sequence[tuple[str, str]],
    distinct: Sequence[tuple[str, str, str]],
) -> tuple[Cell, ...]:
    """The columns of all operators, in order."""
    at = {entity.name: n for n, entity in enumerate(entities)}
    fades = list(enumerate(speeds))
    cells = [
        Cell(f"{name}:{base}/{label}.{speed}", AGAINST, at[name], k, s, at[base])
        for name, base in against
        for s, speed in fades
        for k, label in enumerate(labels)
    ]
    for kind, value in values:
        sums = kinds.index(value_kinds(kind, value)[0])
        cells += [
            Cell(f"{name}/{kind}.{value}.{what}.{speed}", operator, at[name], sums, s)
            for name in at
            for operator, what in ((SUM, "sum"), (MEAN, "mean"))
            for s, speed in fades
        ]
    last_kinds = list(dict.fromkeys(kind for kind, _ in last))
    for kind, name in last:
        k = last_kinds.index(kind)
        cells.append(Cell(f"{name}/since({kind})", SINCE, at[name], k))
        cells += [
            Cell(f"{name}/last({kind}.{v})", VALUE, at[name], k) for of, v in values if of == kind
        ]
    cells += [
        Cell(f"{name}/{distinct_kind(kind, member)}.{speed}", DISTINCT, at[name],
             kinds.index(distinct_kind(kind, member)), s)
        for kind, name, member in distinct
        for s, speed in fades
    ]  # fmt: skip
    return tuple(cells)


def last_key(kind: str) -> int:
    """Key that an entity's is crossed with: that of its newest event of a kind."""
    return key_of("last", kind)


class EventKeys:
    """Keys of some entities for one event: ``starts`` has the first item column of each slot, and their
    number."""

    def __init__(
        self,
        entities: Sequence[Entity],
        starts: Mapping[str, tuple[int, int]],
        seeds: Sequence[int] = (),
    ) -> None:
        self._lefts = [entity.left for entity in entities]
        rows = [(e.left != "", 0, *starts[e.right]) for e in entities]
        self._rows = np.zeros((len(entities), 5), np.int64)
        self._rows[:, :4] = np.array(rows, np.int64).reshape(-1, 4)
        self._rows[:, 4] = seeds if len(seeds) else 0
        self._size = int(self._rows[:, 3].sum()) + len(entities)

    def of(self, keys_I: Keys, lefts: Mapping[str, int]) -> Keys:
        """Their keys, each once, crossed with their seeds, for an item's keys and the event's other
        halves; ``lefts`` has those of all under ""."""
        rows, out = self._rows.copy(), np.empty(self._size, np.int64)
        for n, left in enumerate(self._lefts):
            rows[n, 1] = lefts.get(left, 0)
        return out[: entity_keys(keys_I, rows, out)]


def signed_log(value: float) -> float:
    """A number on a logarithmic scale, on either side of 0."""
    return copysign(log1p(abs(value)), value)


def is_own(entity: Entity) -> bool:
    """Whether it is the viewer as a whole."""
    return entity.own and entity.name == USER


def function_of(call: str) -> Callable[..., Any]:
    """The function that ``module:name@version`` names; raises ValueError."""
    path, _, version = call.partition("@")
    module, _, name = path.partition(":")
    if not (module and name and version):
        raise ValueError(f"{call!r}, expected module:name@version")
    try:
        function = getattr(import_module(module), name)
    except Exception as error:
        raise ValueError(
            f"{call!r}, which can't be loaded ({type(error).__name__}: {error}): install its module on every "
            "machine"
        ) from error
    has = str(getattr(function, "version", version))
    if not callable(function) or has != version:
        raise ValueError(
            f"{call!r}, but its version is {has!r}: declare this one, which makes another feature set, or "
            "install the declared one"
        )
    return function  # type: ignore[no-any-return]


class Derivation:
    """Computes derived columns from those before them. ``errors``: calls of functions that failed, by column;
    these give 0."""

    def __init__(self, derived: Sequence[Derived], names: Sequence[str]) -> None:
        at = {name: n for n, name in enumerate(names)}
        self.errors: Counter[str] = Counter()
        operators, rows, edges = list(EXPRESSIONS), [], list[float]()
        self._functions = []
        for one in derived:
            columns = [at[name] for name in one.columns]
            if one.operator == FUNCTION:
                self._functions.append((one.name, at[one.name], columns, function_of(one.call)))
                continue
            operator, stop = operators.index(one.operator), len(edges) + len(one.edges)
            rows.append((operator, at[one.name], columns[0], columns[-1], len(edges), stop))
            edges += one.edges
        self._rows = np.array(rows, np.int64).reshape(-1, 6)
        self._edges = np.array(edges, np.float32)

    def write(self, dense: Floats) -> None:
        """Computes the columns in place."""
        if len(self._rows):
            derive(dense, self._rows, self._edges, np.float32(_BOUND))
        for name, out, columns, function in self._functions:
            dense[:, out] = self._called(name, function, [dense[:, c].copy() for c in columns])

    def _called(self, name: str, function: Callable[..., Any], values: list[Floats]) -> Floats:
        try:
            called = np.asarray(function(*values), np.float32)
            result = np.broadcast_to(called, values[0].shape)
            if np.isfinite(result).all():
                return np.clip(result, -_BOUND, _BOUND)
        except Exception:  # whatever an app's own code raises must not end an answer
            pass
        self.errors[name] += 1
        return np.zeros_like(values[0])
