"""The age of an item."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import Column
from recsys.features.families.base import Family, Fault, Floats, RequestView

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

AGE: Final = "item.age"


@dataclass(frozen=True)
class DeclaredAge:
    """``item_age``: time since an item's first publication, or since the time in ``age_field``."""

    item_age: bool = False
    age_field: str = ""


class Age(Family):
    """Logarithm of the hours since publication, at most about 2; -1 for an item that was never published."""

    name, keys = "age", ("age",)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """True, false, or the name of a field."""
        age = raw.get("age", False)
        if isinstance(age, str):
            return {"item_age": bool(age), "age_field": age}
        return {"item_age": values.flag(age, "features", "age")}

    @classmethod
    def faults(cls, features: "FeatureSet") -> Iterator[Fault]:
        """A field that isn't a time of items."""
        field, times = features.declared.age_field, features.schema.times
        if field and field not in times:
            expected = f"true, false or an item field of kind time ({', '.join(times) or 'none'})"
            yield ("features", "age"), f"features.age is {field!r}, expected {expected}"

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """One, which a list ranks by."""
        if features.declared.item_age:
            yield Column(cls.name, AGE, (cls.name, features.declared.age_field), True, ranked=True)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """The catalogue has the time that the declaration names."""
        published_ms = request.catalogue.published_ms[request.candidates]
        hours = np.maximum(0, request.now_ms - published_ms) / 3_600_000.0
        ages = np.where(published_ms != 0, np.log1p(hours) / 5.0, -1.0).astype(np.float32)
        dense_NF[:, self.at] = ages[:, None]
