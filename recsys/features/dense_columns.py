"""What stands in each dense column, by name and in order: ``recsys.features.feature_builder`` writes them so.

The names are part of a feature set's digest. So a column that is added, left out or moved makes another
feature set, and nothing that was logged or trained by the one is read as the other.
"""

from typing import Final

from recsys.events.field_schema import NUMERIC, Schema

# Running rates are of these entities, and of two for each group: all viewers and the user with it.
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
    """Whose running rates are columns."""
    groups = (f"{whose}.{name}" for name in schema.groups for whose in ("group", "user×group"))
    return (*_ENTITIES, *groups)


def numbers(main_labels: tuple[str, ...]) -> tuple[str, ...]:
    """The numbers of each entity, at both speeds."""
    rates = (f"{label}.{speed}" for speed in ("fast", "slow") for label in main_labels)
    return ("shown.fast", "shown.slow", *rates, "watch.slow")


def dense_names(schema: Schema, main_labels: tuple[str, ...]) -> tuple[str, ...]:
    """All columns (F,): entity/number, the item's own numbers, the moment."""
    counters = (f"{its}/{number}" for its in entities(schema) for number in numbers(main_labels))
    numeric = (f"item.{name}" for name in schema.names("item", NUMERIC))
    vectors = (f"item.{name}[{n}]" for name, length in schema.vectors for n in range(length))
    return (*counters, *numeric, *vectors, *MOMENT)
