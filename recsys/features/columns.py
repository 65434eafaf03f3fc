"""Entities with counters, and the dense columns of a feature set, which each feature gives in their order.

An entity is anything that counters are kept for: an item, a group of items, the viewer, the context, or a
pair of these. Names are for people, and part of a feature set's digest. Two sets that name half-lives or
entities differently have columns of one measure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from recsys.events.field_schema import CATEGORICAL, NUMERIC, Schema

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

ALL: Final = "all"
USER: Final = "user"
CONTEXT: Final = "context"  # the first context field
PROFILE: Final = "profile"  # the first field of the viewer's profile
ITEM: Final = "item"
DURATION: Final = "duration"
TIMES: Final = "×"
Names = tuple[str, ...]


@dataclass(frozen=True)
class Entity:
    """Subject of a row of counters: an item slot, a field of the request or the user, or their cross.
    ``own``: over the viewer's own events, else everybody's. ``left``: "", context or profile of the request,
    or one or two named fields: ``context.device``, ``user.region``. ``right``: "", or an item slot. ``name``:
    in column names."""

    name: str
    own: bool
    left: str
    right: str


def default_entities(schema: Schema) -> tuple[Entity, ...]:
    """Entities of a feature set that declares none. Their names are older than declared entities."""
    groups = [f"item.{name}" for name in schema.groups]
    return (
        Entity("all", False, "", ""),
        Entity("context", False, CONTEXT, ""),
        Entity("item", False, "", ITEM),
        Entity("item×context", False, CONTEXT, ITEM),
        Entity("duration×context", False, CONTEXT, DURATION),
        Entity("user", True, "", ""),
        Entity("user×context", True, CONTEXT, ""),
        Entity("user×item", True, "", ITEM),
        Entity("user×duration", True, "", DURATION),
        *(
            Entity(f"{kind}.{group.removeprefix('item.')}", own, "", group)
            for group in groups
            for kind, own in (("group", False), ("user×group", True))
        ),
    )


def entity_of(name: str, schema: Schema) -> Entity:
    """The entity with a declared name: one or two of user, context or profile, or a categorical field of
    users or contexts, and item, duration or a categorical item field, joined by ``×`` (or ``*``), e.g.
    ``user×category``. A field that several have is named with its owner: ``item.kind``. Raises ValueError."""
    parts = [part.strip() for part in name.replace("*", TIMES).split(TIMES)]
    if parts == [ALL]:
        return Entity(ALL, False, "", "")
    own, halves = USER in parts, [_half(part, schema) for part in parts if part != USER]
    lefts = [left for left, _ in halves if left]
    slots = [slot for _, slot in halves if slot]
    refused = len(parts) > 2 or parts.count(USER) > 1 or len(lefts) + len(slots) < len(halves)
    refused |= len(slots) > 1 or len(set(lefts)) < len(lefts)
    refused |= len(lefts) > 1 and not all("." in left for left in lefts)
    # A viewer has one profile.
    refused |= own and any(left == PROFILE or left.startswith("user.") for left in lefts)
    if refused:
        raise ValueError(
            f"entity {name!r} isn't one, or a pair, of user, context or profile, and item, duration or a "
            f"group field ({', '.join(schema.groups) or 'none declared'}), or other categorical fields, "
            "joined by '×'"
        )
    return Entity(TIMES.join(parts), own, TIMES.join(lefts), "".join(slots))


def _half(part: str, schema: Schema) -> tuple[str, str]:
    """The left and the item slot that a part of a name means, one of them empty; both if it means none."""
    rights = {ITEM: ITEM, DURATION: DURATION} | {g: f"item.{g}" for g in schema.groups}
    if part in (CONTEXT, PROFILE) or part in rights:
        return (part, "") if part not in rights else ("", rights[part])
    fields = [
        f"{owner}.{name}"
        for owner in ("item", "user", "context")
        for name in schema.names(owner, CATEGORICAL)
        if part in (name, f"{owner}.{name}")
    ]
    if len(fields) > 1:
        raise ValueError(f"{part!r} names several fields: write one of {', '.join(fields)}")
    field = fields[0] if fields else ""
    return ("", field) if field.startswith("item.") else (field, "")


def speed_names(half_lives_h: tuple[float, ...]) -> Names:
    """The name of each half-life in column names."""
    return tuple(f"{hours:g}h" for hours in half_lives_h)


def numbers(main_labels: Names, speeds: Names, watches: int) -> Names:
    """Numbers of each entity: counts and rates at each speed, watch time at the ``watches`` slowest."""
    shown = (f"shown.{speed}" for speed in speeds)
    rates = (f"{label}.{speed}" for speed in speeds for label in main_labels)
    return (*shown, *rates, *(f"watch.{speed}" for speed in speeds[-watches:]))


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
    """Measure of an entity, whatever a set names it."""
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
            yield Column("rates", f"{entity.name}/{number}", measure, bool(entity.right), entity.own)


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
