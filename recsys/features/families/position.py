"""The place of an item in the list that is shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import Column
from recsys.features.families.base import Family, Floats

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

POSITION: Final = "list.position"


@dataclass(frozen=True)
class DeclaredPosition:
    """``position``: rank in the list, which is learned from, and 0 when items are scored."""

    position: bool = False


class Position(Family):
    """Log positions, less their mean, so that 0 is a place in the middle."""

    name, keys = "position", ("position",)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """True or false."""
        return {"position": values.flag(raw.get("position", False), "features", "position")}

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """One, in which candidates don't differ when they are scored."""
        if features.declared.position:
            yield Column(cls.name, POSITION, (cls.name,), own=True)

    def write_shown(self, dense_NF: Floats) -> None:
        """For the items in their order."""
        positions = np.log1p(np.arange(len(dense_NF)))
        dense_NF[:, self.at] = (positions - positions.mean())[:, None]
