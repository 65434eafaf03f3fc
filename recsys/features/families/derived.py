"""Columns computed from others: expressions, and an app's own functions."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from recsys import plugins
from recsys.config.yaml_values import YamlValues, is_number
from recsys.features.columns import Column
from recsys.features.families.base import Family, Fault, Floats, RequestView
from recsys.features.families.position import Position

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

# Operators with their numbers of columns.
EXPRESSIONS: Final = {"difference": 2, "ratio": 2, "log": 1, "bucket": 1}
FUNCTION: Final = "function"
_BOUND: Final = 100.0


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


@dataclass(frozen=True)
class DeclaredDerived:
    """``derived``: columns computed from others, each from those before it."""

    derived: tuple[Derived, ...] = ()


class DerivedColumns(Family):
    """Expressions in the order of the file, then functions."""

    name, keys = "derived", ("expressions", "functions")

    def __init__(self, features: "FeatureSet") -> None:
        super().__init__(features)
        self.derivation = Derivation(features.derived, features.dense_names)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """Both, by their names."""
        return {"derived": (*_expressions(raw, values), *_functions(raw, values))}

    @classmethod
    def faults(cls, features: "FeatureSet") -> Iterator[Fault]:
        """Derived columns read those before them, and neither the position nor the list's."""
        derived = features.declared.derived
        made = {one.name for one in derived}
        before = features.dense[: features.span(cls.name).start]
        columns = [one.name for one in before if one.family != Position.name]
        after_function = False
        for one in derived:
            is_function, reason = one.operator == FUNCTION, ""
            if is_function:
                try:
                    function = plugins.load_version(plugins.OPERATORS, one.call)
                    if getattr(function, "columns", len(one.columns)) != len(one.columns):
                        reason = f"reads {len(one.columns)} columns, expected: {function.columns}"
                except ValueError as error:
                    reason = f"has the call {one.call!r}: {error}"
            elif len(one.columns) != EXPRESSIONS.get(one.operator):
                numbers = ", ".join(f"{name} {number}" for name, number in EXPRESSIONS.items())
                reason = f"reads {len(one.columns)} columns, expected: {numbers}"
            elif after_function:
                reason = "stands after a function: declare expressions before functions"
            edges = list(one.edges)
            if (one.operator == "bucket") != bool(edges) or edges != sorted(set(edges)):
                reason = f"has the edges {edges}, expected ascending numbers, of a bucket"
            for column in one.columns:
                if column not in columns:
                    near = get_close_matches(column, columns, 1, 0.5)
                    why = f"isn't a column; did you mean {near[0]!r}?" if near else "isn't a column"
                    if column in made:
                        why = "is computed after it: declare it before"
                    reason = reason or f"reads {column!r}, which {why}"
            if reason:
                key = "functions" if is_function else "expressions"
                yield ("features", key, one.name), f"features.{key}.{one.name} {reason}"
            after_function |= is_function
            columns.append(one.name)

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """Measured by what they are computed from."""
        measures = {column.name: column.measure for column in before}
        for one in features.derived:
            of = tuple(measures.get(name, (name,)) for name in one.columns)
            measures[one.name] = cls.name, one.operator, of, one.edges, one.call
            yield Column(cls.name, one.name, measures[one.name], True, True)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """From all columns before them."""
        self.derivation.write(dense_NF, dense_NF)


def _expressions(raw: Mapping[str, Any], values: YamlValues) -> Iterator[Derived]:
    section = ("features", "expressions")
    for name, value in values.mapping(raw.get("expressions", {}), *section):
        path = (*section, values.name(name, *section, name))
        keys = set(values.section({*EXPRESSIONS, "at"}, *path)) - {"at"}
        if len(keys) != 1 or ("at" in value) != ("bucket" in value):
            expected = f"one of {', '.join(EXPRESSIONS)}; a bucket with at: its edges"
            raise values.expected(expected, value, *path)
        operator = keys.pop()
        edges = value.get("at", [])
        if not isinstance(edges, list) or not all(map(is_number, edges)):
            raise values.expected("ascending numbers", edges, *path, "at")
        columns = values.some(value[operator], *path, operator)
        yield Derived(name, operator, columns, tuple(map(float, edges)))


def _functions(raw: Mapping[str, Any], values: YamlValues) -> Iterator[Derived]:
    section = ("features", "functions")
    for name, _ in values.mapping(raw.get("functions", {}), *section):
        path = (*section, values.name(name, *section, name))
        keys = values.section({"call", "of"}, *path)
        call = keys.get("call")
        if not isinstance(call, str):
            raise values.expected("name@version or module:name@version", call, *path, "call")
        yield Derived(name, FUNCTION, values.some(keys.get("of"), *path, "of"), (), call)
