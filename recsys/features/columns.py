"""Dense columns of a feature set as values: each family of features gives its own, in their order.

Names are for people. Two sets that name half-lives or entities differently have columns of one measure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from recsys.events.field_schema import NUMERIC
from recsys.features.running_rates import Entity

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

Measure = tuple[Any, ...]
# Columns of the moment of a request.
MOMENT: Final = ("hour.sin", "hour.cos", "since_last_event", "events")
AGE: Final = "item.age"
NEAR: Final = "item.near"
NEAR_IN_VISIT: Final = "item.near.visit"
POSITION: Final = "list.position"
LENGTH: Final = "list.length"


class Hours(float):
    """A half-life within a measure."""


class Column(NamedTuple):
    """A dense column. ``family``: the feature that it belongs to. ``measure``: the same for equal numbers of
    different sets. ``differs``: whether the candidates of a request may differ in it. ``own``: whether the
    viewer's past has a part in it."""

    family: str
    name: str
    measure: Measure
    differs: bool = False
    own: bool = False


def entity_measure(entity: Entity) -> Measure:
    """What an entity is, whatever a set names it."""
    return entity.own, entity.left, entity.right


def with_hours(measure: Measure, hours: Mapping[float, float]) -> Measure:
    """A measure with other half-lives."""
    return tuple(
        Hours(hours.get(one, one))
        if isinstance(one, Hours)
        else with_hours(one, hours)
        if isinstance(one, tuple)
        else one
        for one in measure
    )


def _rates(features: "FeatureSet") -> Iterator[Column]:
    declared, labels = features.declared, features.main_labels
    hours = [*map(Hours, declared.half_lives_h)]
    of = [("shown", h) for h in hours] + [(label, h) for h in hours for label in labels]
    of += [("watch", h) for h in hours[-declared.watches :]]
    for entity in features.entities:
        for number, label_and_hours in zip(features.numbers, of, strict=True):
            measure = "rates", entity_measure(entity), *label_and_hours
            yield Column(
                "rates", f"{entity.name}/{number}", measure, bool(entity.right), entity.own
            )


def _numbers(features: "FeatureSet") -> Iterator[Column]:
    for name in features.schema.names("item", NUMERIC):
        yield Column("numbers", f"item.{name}", ("numbers", name), True)


def _vectors(features: "FeatureSet") -> Iterator[Column]:
    for name, length in features.schema.vectors:
        for n in range(length):
            yield Column("vectors", f"item.{name}[{n}]", ("vectors", name, n))


def _moment(features: "FeatureSet") -> Iterator[Column]:
    for name in MOMENT:
        yield Column("moment", name, ("moment", name), own=True)


def _age(features: "FeatureSet") -> Iterator[Column]:
    if features.declared.item_age:
        yield Column("age", AGE, ("age", features.declared.age_field), True)


def _near(features: "FeatureSet") -> Iterator[Column]:
    if features.declared.near:
        yield Column("near", NEAR, ("near",), True, True)


def _visit(features: "FeatureSet") -> Iterator[Column]:
    if pause_s := features.declared.visit_s:
        yield Column("visit", NEAR_IN_VISIT, ("visit", pause_s), True, True)


def _trend(features: "FeatureSet") -> Iterator[Column]:
    """Change of an entity's count from each half-life to the next longer one."""
    steps = [*zip(features.speeds, pairwise(features.declared.half_lives_h), strict=False)]
    for entity in features.entities if features.declared.trend else ():
        for speed, (short, long) in steps:
            measure = "trend", entity_measure(entity), Hours(short), Hours(long)
            name = f"{entity.name}/trend.{speed}"
            yield Column("trend", name, measure, bool(entity.right), entity.own)


def _position(features: "FeatureSet") -> Iterator[Column]:
    if features.declared.position:
        yield Column("position", POSITION, ("position",), own=True)


def _fields(features: "FeatureSet") -> Iterator[Column]:
    for name in features.declared.numbers:
        yield Column("fields", name, ("fields", name), own=True)


def _operators(features: "FeatureSet") -> Iterator[Column]:
    for cell in features.cells:
        entity = features.entities[cell.entity]
        yield Column("operators", cell.name, cell.measure, bool(entity.right), entity.own)


BEFORE_DERIVED: Final[Sequence[Callable[["FeatureSet"], Iterator[Column]]]] = (
    _rates, _numbers, _vectors, _moment, _age, _near, _visit, _trend, _position, _fields, _operators,
)  # fmt: skip


def item_columns(features: "FeatureSet") -> list[Column]:
    """The columns that don't compare the items of a list."""
    columns = [column for family in BEFORE_DERIVED for column in family(features)]
    measures = {column.name: column.measure for column in columns}
    for one in features.derived:
        of = tuple(measures.get(name, (name,)) for name in one.columns)
        measures[one.name] = "derived", one.operator, of, one.edges, one.call
        columns.append(Column("derived", one.name, measures[one.name], True, True))
    return columns
