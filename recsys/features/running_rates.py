"""Entities with running rates, and the names of their dense columns.

An entity is anything that counters are kept for: an item, a group of items, the viewer, the context, or a
pair of these. ``recsys.features.feature_builder`` writes its numbers in the order of the names here, which
are part of a feature set's digest: adding, removing or moving a column makes another feature set.
"""

from dataclasses import dataclass
from typing import Final

from recsys.events.field_schema import CATEGORICAL, Schema

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
