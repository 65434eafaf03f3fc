"""Feature sets that a running system changes between: their union, and the part of a block that a model of a
narrower set reads.

A system computes and logs one set. A model may read fewer columns and a shorter history of it, so a column
can be logged before any model reads it, and stay after none does. Columns are matched by what they measure:
their names differ between sets that declare different half-lives.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from recsys.events.event_types import FeatureBlock
from recsys.events.field_schema import CATEGORICAL, NUMERIC
from recsys.features.columns import TIMES, USER, Entity, entity_measure, with_hours
from recsys.features.families.declared import Declared
from recsys.features.families.derived import FUNCTION, Derived
from recsys.features.feature_set import FeatureSet, Keys
from recsys.features.request_features import RequestFeatures, UnknownFeatureSet

_MOST_SPEEDS: Final = 6  # half-lives of one counter


def united(logged: FeatureSet, new: FeatureSet) -> FeatureSet:
    """The set with all columns of both; ``logged`` itself if it has them. Raises ValueError for sets that
    differ in more than their columns, and for too many half-lives."""
    _check_alike(logged, new)
    if covers(logged, new):
        return logged
    old, declared = logged.declared, new.declared
    hours = tuple(sorted({*old.half_lives_h, *declared.half_lives_h}))
    if len(hours) > _MOST_SPEEDS:
        raise ValueError(
            f"half-lives before and after the change are {len(hours)} ({', '.join(map(str, hours))} hours), "
            f"expected at most {_MOST_SPEEDS}: change fewer at a time"
        )
    named = [f for f in (new, logged) if f.declared.entities]
    entities = {entity_measure(e): _name(e) for e in (*logged.entities, *new.entities)}
    entities |= {entity_measure(e): e.name for f in named for e in f.entities}
    names = [{e.name: entities[entity_measure(e)] for e in f.entities} for f in (logged, new)]
    both = [_renamed(one, own) for one, own in zip((old, declared), names, strict=True)]
    merged = {field.name: _either(*(getattr(one, field.name) for one in both)) for field in fields(Declared)}
    watched = {one.half_lives_h[-one.watches :] for one in (old, declared)}
    merged |= {"half_lives_h": hours, "entities": tuple(entities.values())}
    merged["watches"] = 1 if watched == {hours[-1:]} else len(hours)
    numbers = dict.fromkeys(n for f in (logged, new) for n in f.schema.names("item", NUMERIC))
    others = tuple(pair for pair in logged.schema.item if pair[1] != NUMERIC)
    item = (*others, *((name, NUMERIC) for name in numbers))
    wide = replace(
        logged,
        schema=replace(
            logged.schema,
            item=item,
            user=tuple(dict.fromkeys((*logged.schema.user, *new.schema.user))),
            context=tuple(dict.fromkeys((*logged.schema.context, *new.schema.context))),
            times=tuple(dict.fromkeys((*logged.schema.times, *new.schema.times))),
        ),
        history=max(logged.history, new.history),
        declared=Declared(**merged),
    )
    bare = [replace(f, declared=replace(f.declared, derived=())) for f in (logged, new)]
    if not all(covers(wide, features) for features in bare):
        raise ValueError(
            "features.age, visit or trend compute something else than before: remove them first, and declare "
            "them anew once the change is live"
        )
    return replace(wide, declared=replace(wide.declared, derived=_derived(wide, logged, new)))


def _either(one: Any, other: Any) -> Any:
    """Union of two declarations of a feature: all values of both, or the first that is on."""
    return tuple(dict.fromkeys((*one, *other))) if isinstance(one, tuple) else one or other


def _derived(wide: FeatureSet, *sets: FeatureSet) -> tuple[Derived, ...]:
    """Derived columns of some sets, by the names of ``wide``. Raises ValueError for two of one name."""
    names = {column.measure: column.name for column in wide.dense}
    made: dict[str, Derived] = {}
    for features in sets:
        ids = {column.name: column.measure for column in features.dense}
        for one in features.derived:
            if ids[one.name] in names:
                continue
            if one.name in made or one.name in wide.dense_names:
                raise ValueError(
                    f"features.{one.name} computes something else than before: give it another name"
                )
            names[ids[one.name]] = one.name
            made[one.name] = replace(one, columns=tuple(names[ids[name]] for name in one.columns))
    return tuple(sorted(made.values(), key=lambda one: one.operator == FUNCTION))


def covers(wide: FeatureSet, narrow: FeatureSet) -> bool:
    """Whether a model of ``narrow`` can read what ``wide`` has logged."""
    columns = wide.places.keys() >= narrow.places.keys()
    return columns and wide.history_length >= narrow.history_length


def columns_from(before: FeatureSet, after: FeatureSet) -> list[int]:
    """The dense column of ``before`` that each of ``after`` continues; -1 for a new one. Where as many
    half-lives came as went, each continues the one that it replaces, in order."""
    old, new = before.declared.half_lives_h, after.declared.half_lives_h
    came, went = sorted({*new} - {*old}), sorted({*old} - {*new})
    hours = dict(zip(came, went, strict=True)) if len(came) == len(went) else {}
    places, measures = before.places, [column.measure for column in after.dense]
    return [places.get(one, places.get(with_hours(one, hours), -1)) for one in measures]


class Narrowing:
    """Reads features of the set ``wide`` as those of ``narrow``."""

    def __init__(self, wide: FeatureSet, narrow: FeatureSet) -> None:
        """Raises UnknownFeatureSet if ``wide`` lacks something."""
        _check_alike(wide, narrow)
        self.narrow = narrow
        places = wide.places
        missing = [column.name for column in narrow.dense if column.measure not in places]
        if missing or wide.history_length < narrow.history_length:
            lacks = ", ".join(missing) or f"a history of {narrow.history_length}"
            raise UnknownFeatureSet(
                f"feature set {wide.digest} lacks {lacks}, which {narrow.digest} reads: it was logged before "
                "the feature was"
            )
        self.width = len(wide.dense_names)
        self.columns: Keys = np.array([places[column.measure] for column in narrow.dense], np.int64)
        self._history = 8 * narrow.history_length * narrow.history_keys
        self._outcomes = 4 * narrow.history_length * narrow.outcomes

    def features(self, request: RequestFeatures) -> RequestFeatures:
        """Features of a request; its list was compared by ``wide``."""
        length = self.narrow.history_length
        return replace(
            request,
            feature_set=self.narrow.digest,
            history_TH=request.history_TH[:length],
            outcomes_TO=request.outcomes_TO[:length],
            dense_NF=np.ascontiguousarray(request.dense_NF[:, self.columns]),
        )

    def block(self, block: FeatureBlock, items: int = 1) -> FeatureBlock:
        """A logged block of some items."""
        dense = np.frombuffer(block.dense, np.float32).reshape(items, -1)
        return FeatureBlock(
            feature_set=self.narrow.digest, user_keys=block.user_keys, item_keys=block.item_keys,
            history=block.history[: self._history], outcomes=block.outcomes[: self._outcomes],
            dense=dense[:, self.columns].tobytes(),
        )  # fmt: skip


def _check_alike(one: FeatureSet, other: FeatureSet) -> None:
    """Raises ValueError unless two sets read events, keys and history entries in the same way."""
    for name, value, expected in (
        ("kind", other.kind, one.kind),
        ("labels", other.schema.labels, one.schema.labels),
        ("groups", other.schema.groups, one.schema.groups),
        ("kinds of engagement", other.schema.kinds, one.schema.kinds),
        ("shown", other.schema.shown_by, one.schema.shown_by),
        ("vectors", other.schema.vectors, one.schema.vectors),
        ("fields with categories", _categories(other), _categories(one)),
        ("history.of", other.declared.history_of, one.declared.history_of),
        ("values of events", other.declared.values, one.declared.values),
        ("item fields with rates that are no groups", other.counted_fields, one.counted_fields),
    ):
        if value != expected:
            raise ValueError(
                f"{name} is {value!r}, expected {expected!r}: keys and labels of a running system stay"
            )


def _categories(features: FeatureSet) -> tuple[tuple[str, ...], ...]:
    parts = ("item", "user", "context")
    return tuple(features.schema.names(part, CATEGORICAL) for part in parts)


def _name(entity: Entity) -> str:
    """The one name that declares an entity; older sets have others."""
    parts = (USER if entity.own else "", entity.left, entity.right)
    return TIMES.join(part for part in parts if part) or "all"


def _renamed(declared: Declared, names: Mapping[str, str]) -> Declared:
    """Declared features with other names of entities, without derived ones."""
    return replace(
        declared,
        entities=tuple(names.values()),
        list_context=tuple(names[name] for name in declared.list_context),
        against=tuple((names[name], names[base]) for name, base in declared.against),
        last=tuple((kind, names[name]) for kind, name in declared.last),
        distinct=tuple((kind, names[name], member) for kind, name, member in declared.distinct),
        derived=(),
    )
