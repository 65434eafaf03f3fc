"""All families, and what an app declares of them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from recsys.features.columns import RESERVED, Column
from recsys.features.families.age import Age, DeclaredAge
from recsys.features.families.base import Family, Fault
from recsys.features.families.derived import DeclaredDerived, DerivedColumns
from recsys.features.families.item_fields import ItemNumbers, Vectors
from recsys.features.families.list_comparison import DeclaredLists, ListComparison
from recsys.features.families.moment import Moment
from recsys.features.families.near import DeclaredNear, Near
from recsys.features.families.operators import DeclaredOperators, Operators
from recsys.features.families.position import DeclaredPosition, Position
from recsys.features.families.rates import DeclaredRates, Rates
from recsys.features.families.request_numbers import DeclaredNumbers, RequestNumbers
from recsys.features.families.trend import DeclaredTrend, Trend
from recsys.features.families.visit import DeclaredVisit, Visit

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

# In the order of their columns.
FAMILIES: Final[tuple[type[Family], ...]] = (
    Rates, ItemNumbers, Vectors, Moment, Age, Near, Visit, Trend, Position, RequestNumbers, Operators,
    DerivedColumns, ListComparison,
)  # fmt: skip
# Fields that are stored always, and those that are stored last: digests of definitions depend on it.
_STORED: Final = (
    "half_lives_h", "entities", "history_of", "item_age", "age_field", "near", "position", "list_context",
)  # fmt: skip
_LAST: Final = ("watches", "whole_list")


@dataclass(frozen=True)
class DeclaredHistory:
    """``history_of``: kinds of engagement that enter the history, none: every item that was shown."""

    history_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Declared(
    DeclaredDerived, DeclaredOperators, DeclaredNumbers, DeclaredLists, DeclaredPosition, DeclaredVisit,
    DeclaredTrend, DeclaredNear, DeclaredAge, DeclaredHistory, DeclaredRates,
):  # fmt: skip
    """Features that an app declares, of each family its own; by default those of short video. Fields are
    stored in the order of the bases, the last one first."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as stored: without those of newer versions that are empty, so that digests stay."""
        names = sorted((field.name for field in fields(self)), key=lambda name: name in _LAST)
        values = {name: msgspec.to_builtins(getattr(self, name)) for name in names}
        return {n: v for n, v in values.items() if n in _STORED or v != getattr(Declared, n)}


def faults(features: "FeatureSet") -> Iterator[Fault]:
    """Faults of declared features, as keys of the definition and reasons with their remedies; those after the
    first may be its consequences."""
    features = replace(features, kind="all")
    for name in features.schema.groups:
        if name in RESERVED:
            why = "which is a built-in entity: rename the field"
            yield ("fields", "item", name), f"a group can't be named {name!r}, {why}"
    for family in FAMILIES:
        yield from family.faults(features)
    first: dict[str, Column] = {}
    for column in features.dense:
        other = first.setdefault(column.name, column)
        if other is not column:
            is_field = other.family == ItemNumbers.name and column.family != DerivedColumns.name
            path = ("fields", "item", other.measure[1]) if is_field else ("features",)
            yield path, f"two columns are named {column.name!r}: rename the field or the feature"
