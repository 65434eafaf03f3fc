"""Names of the dense columns, in the order in which ``recsys.features.feature_builder`` writes them.

The names are part of a feature set's digest: adding, removing or moving a column makes another feature set.
"""

from typing import Final

from recsys.events.field_schema import NUMERIC, Schema

# Entities with running rates, plus two per group: the group for all viewers and for the user.
_ENTITIES: Final = (
    "all",
    "context",
    "item",
    "item×context",
    "duration×context",
    "user",
    "user×context",
    "user×item",
    "user×duration",
)
MOMENT: Final = ("hour.sin", "hour.cos", "since_last_event", "events")


def entities(schema: Schema) -> tuple[str, ...]:
    """Entities whose running rates are columns."""
    groups = (f"{kind}.{name}" for name in schema.groups for kind in ("group", "user×group"))
    return (*_ENTITIES, *groups)


def numbers(main_labels: tuple[str, ...]) -> tuple[str, ...]:
    """Numbers of each entity, at both speeds."""
    rates = (f"{label}.{speed}" for speed in ("fast", "slow") for label in main_labels)
    return ("shown.fast", "shown.slow", *rates, "watch.slow")


def dense_names(schema: Schema, main_labels: tuple[str, ...]) -> tuple[str, ...]:
    """All columns (F,): entity/number, the item's own numbers, the moment."""
    counters = (
        f"{entity}/{number}" for entity in entities(schema) for number in numbers(main_labels)
    )
    numeric = (f"item.{name}" for name in schema.names("item", NUMERIC))
    vectors = (f"item.{name}[{n}]" for name, length in schema.vectors for n in range(length))
    return (*counters, *numeric, *vectors, *MOMENT)
