"""Checks of declared features against each other. Yields the place of each fault, as the keys of the
definition, and a reason with its remedy."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

from recsys import plugins
from recsys.events.field_schema import NUMERIC
from recsys.features.columns import ALL, CONTEXT, DURATION, ITEM, POSITION, PROFILE, USER, entity_of
from recsys.features.feature_set import Declared, FeatureSet
from recsys.features.operators import EXPRESSIONS, FUNCTION

Fault = tuple[tuple[str | int, ...], str]
RESERVED: Final = (ALL, USER, CONTEXT, PROFILE, ITEM, DURATION)


def faults(features: FeatureSet) -> Iterator[Fault]:
    """The faults, the first one first; those after it may be its consequences."""
    features = replace(features, kind="all")
    schema, declared = features.schema, features.declared
    for name in schema.groups:
        if name in RESERVED:
            why = "which is a built-in entity: rename the field"
            yield ("fields", "item", name), f"a group can't be named {name!r}, {why}"
    for at, name in enumerate(declared.entities):
        try:
            entity_of(name, schema)
        except ValueError as error:
            yield ("features", "rates", at), f"rates: {error}"
    for name in declared.list_context:
        if name not in [entity.name for entity in features.entities]:
            reason = f"features.list has {name!r}, which isn't among features.rates"
            yield ("features", "list"), reason
    for at, name in enumerate(declared.numbers):
        numbers = [f"{p}.{n}" for p in ("user", "context") for n in schema.names(p, NUMERIC)]
        if name not in numbers:
            reason = f"features.numbers has {name!r}, expected {_one_of(numbers)}"
            yield ("features", "numbers", at), reason
    yield from _operator_faults(features, declared)
    names = features.dense_names
    for n, name in enumerate(names):
        if name in names[:n]:
            field = name.removeprefix("item.")
            reason = f"two columns are named {name!r}: rename the field or the feature"
            made = any(one.name == name for one in declared.derived)
            yield ("features",) if made else ("fields", "item", field), reason
    yield from _derived_faults(features)


def _operator_faults(features: FeatureSet, declared: Declared) -> Iterator[Fault]:
    kinds, entities = features.schema.kinds, {entity.name: entity for entity in features.entities}
    names = [("against", first, name) for first, base in declared.against for name in (first, base)]
    for key, first, name in (*names, *(("last", kind, name) for kind, name in declared.last)):
        if name not in entities:
            reason = f"features.{key} has {name!r}, which isn't among features.rates: add it there"
            yield ("features", key, first), reason
    for name, base in declared.against:
        if base in (name, ALL):
            reason = f"features.against has {name!r} against {base!r}, expected another entity"
            yield ("features", "against", name), f"{reason}: all rates are relative to those of all"
    kinds_read = [("last", kind) for kind, _ in declared.last]
    kinds_read += [("distinct", kind) for kind, _, _ in declared.distinct]
    for key, kind in (*kinds_read, *(("counts", kind) for kind in declared.counts)):
        if kind not in kinds:
            yield ("features", key, kind), f"features.{key} has {kind!r}, expected {_one_of(kinds)}"
    counted = [name for name, entity in entities.items() if name == USER or not entity.own]
    for kind, name, member in declared.distinct:
        about = f"features.distinct.{kind}"
        expected = "item, duration or a categorical field of items" if name == USER else USER
        if name not in counted:
            expected = "one of features.rates: user or everybody's"
            reason = f"{about} counts by {name!r}, expected {expected}"
        elif (member != USER) if name != USER else not _item_slot(member, features):
            reason = f"{about}.{name} is {member!r}, expected {expected}"
        else:
            continue
        yield ("features", "distinct", kind, name), reason


def _item_slot(member: str, features: FeatureSet) -> str:
    try:
        entity = entity_of(member, features.schema)
    except ValueError:
        return ""
    return "" if entity.own or entity.left else entity.right


def _derived_faults(features: FeatureSet) -> Iterator[Fault]:
    """Faults of derived columns, which read those before them, and neither the position nor the list's."""
    derived = features.declared.derived
    made = {one.name for one in derived}
    columns = list(features.dense_names[: len(features.dense_names) - features.list_columns])
    columns = [name for name in columns if name not in made and name != POSITION]
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


def _one_of(values: tuple[str, ...] | list[str]) -> str:
    return f"one of {', '.join(values)}" if values else "none, since none is declared"
