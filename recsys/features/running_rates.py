"""Entities with running rates, and the names of their dense columns.

An entity is anything that counters are kept for: an item, a group of items, the viewer, the context, or a
pair of these. ``recsys.features.feature_builder`` writes its numbers in the order of the names here, which
are part of a feature set's digest: adding, removing or moving a column makes another feature set.
"""

from dataclasses import dataclass
from typing import Final

from recsys.events.field_schema import Schema

ALL: Final = "all"
USER: Final = "user"
CONTEXT: Final = "context"  # the first context field
PROFILE: Final = "profile"  # the first field of the viewer's profile
ITEM: Final = "item"
DURATION: Final = "duration"
TIMES: Final = "×"


@dataclass(frozen=True)
class Entity:
    """``own``: over the viewer's own events, else everybody's. ``left``: "", context or profile of the
    request. ``right``: "", or an item slot. ``name``: in column names."""

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
    """The entity with a declared name: one or two of user, context or profile, and item, duration or a group
    field, joined by ``×`` (or ``*``), e.g. ``user×category``. Raises ValueError."""
    parts = [part.strip() for part in name.replace("*", TIMES).split(TIMES)]
    own = USER in parts
    lefts = [part for part in parts if part in (CONTEXT, PROFILE)]
    rights = {ITEM: ITEM, DURATION: DURATION} | {g: f"item.{g}" for g in schema.groups}
    slots = [rights[part] for part in parts if part in rights]
    if parts == [ALL]:
        return Entity(ALL, False, "", "")
    refused = own and lefts and (slots or lefts == [PROFILE])  # a viewer has one profile
    if own + len(lefts) + len(slots) != len(parts) or len(lefts) > 1 or len(slots) > 1 or refused:
        raise ValueError(
            f"entity {name!r} isn't one, or a pair, of user, context or profile, and item, duration or a "
            f"group field ({', '.join(schema.groups) or 'none declared'}), joined by '×'"
        )
    return Entity(TIMES.join(parts), own, "".join(lefts), "".join(slots))


def speed_names(half_lives_h: tuple[float, ...]) -> tuple[str, ...]:
    """The name of each half-life in column names."""
    return tuple(f"{hours:g}h" for hours in half_lives_h)


def numbers(main_labels: tuple[str, ...], speeds: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers of each entity: counts and rates at each speed, watch time at the slowest."""
    shown = (f"shown.{speed}" for speed in speeds)
    rates = (f"{label}.{speed}" for speed in speeds for label in main_labels)
    return (*shown, *rates, f"watch.{speeds[-1]}")
