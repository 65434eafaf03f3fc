"""Entities with counters, and the dense columns of a feature set, which families of features give.

An entity is anything that counters are kept for: an item, a group of items, the viewer, the context, or a
pair of these. Names are for people, and part of a feature set's digest. Two sets that name half-lives or
entities differently have columns of one measure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from recsys.events.field_schema import CATEGORICAL, Schema
from recsys.events.hashing import key_of

ALL: Final = "all"
USER: Final = "user"
CONTEXT: Final = "context"  # the first context field
PROFILE: Final = "profile"  # the first field of the viewer's profile
ITEM: Final = "item"
DURATION: Final = "duration"
TIMES: Final = "×"
RESERVED: Final = (ALL, USER, CONTEXT, PROFILE, ITEM, DURATION)
GLOBAL: Final = key_of("entity", "global")  # counter row of everybody
VIEWER: Final = key_of("entity", "user")  # counter row of the viewer as a whole
Names = tuple[str, ...]


@dataclass(frozen=True)
class Entity:
    """Subject of a row of counters: an item slot, a field of the request or the user, or their cross.
    ``own``: over the viewer's own events, else everybody's. ``left``: "", context or profile of the request,
    or one or two named fields: ``context.device``, ``user.region``. ``right``: "", or an item slot. ``name``:
    in column names. ``left_names``: the names in ``left``."""

    name: str
    own: bool
    left: str
    right: str
    left_names: tuple[str, ...] = field(default=(), compare=False, repr=False)


def default_entities(schema: Schema) -> tuple[Entity, ...]:
    """Entities of a feature set that declares none. Their names are older than declared entities."""
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
            Entity(f"{kind}.{group}", own, "", f"item.{group}")
            for group in schema.groups
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
    refused |= len(lefts) > 1 and not {CONTEXT, PROFILE}.isdisjoint(lefts)
    # A viewer has one profile.
    profile = {PROFILE, *(f"user.{name}" for name in schema.names("user", CATEGORICAL))}
    refused |= own and not profile.isdisjoint(lefts)
    if refused:
        raise ValueError(
            f"entity {name!r} isn't one, or a pair, of user, context or profile, and item, duration or a "
            f"group field ({', '.join(schema.groups) or 'none declared'}), or other categorical fields, "
            "joined by '×'"
        )
    return Entity(TIMES.join(parts), own, TIMES.join(lefts), "".join(slots), tuple(lefts))


def _half(part: str, schema: Schema) -> tuple[str, str]:
    """The left and the item slot that a part of a name means, one of them empty; both if it means none."""
    rights = {ITEM: ITEM, DURATION: DURATION} | {g: f"item.{g}" for g in schema.groups}
    if part in (CONTEXT, PROFILE) or part in rights:
        return (part, "") if part not in rights else ("", rights[part])
    fields = [
        (f"{owner}.{name}", owner)
        for owner in ("item", "user", "context")
        for name in schema.names(owner, CATEGORICAL)
        if part in (name, f"{owner}.{name}")
    ]
    if len(fields) > 1:
        raise ValueError(
            f"{part!r} names several fields: write one of {', '.join(full for full, _ in fields)}"
        )
    full, owner = fields[0] if fields else ("", "")
    return ("", full) if owner == "item" else (full, "")


Measure = tuple[Any, ...]


class Hours(float):
    """A half-life within a measure."""


class Column(NamedTuple):
    """A dense column. ``family``: the feature that it belongs to. ``measure``: the same for equal numbers of
    different sets. ``differs``: whether the candidates of a request may differ in it. ``own``: whether the
    viewer's past has a part in it. ``entity``: name of the one that it counts. ``ranked``: whether a list
    that compares that entity, or any if it has none, ranks by it."""

    family: str
    name: str
    measure: Measure
    differs: bool = False
    own: bool = False
    entity: str = ""
    ranked: bool = False


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
