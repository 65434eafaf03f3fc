"""The trend of an entity's showings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import Column, Hours, entity_measure
from recsys.features.families.base import Family, Floats, RequestView
from recsys.features.families.rates import Rates
from recsys.features.feature_kernels import LOG_COUNT

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet


@dataclass(frozen=True)
class DeclaredTrend:
    """``trend``: change of each entity's count from a half-life to the next longer one."""

    trend: bool = False


class Trend(Family):
    """Logarithm of an entity's showings at a half-life less the one at the next longer one."""

    name, keys = "trend", ("trend",)

    def __init__(self, features: "FeatureSet") -> None:
        super().__init__(features)
        of = [column.measure[1:] for column in features.dense[self.at]]
        places = features.places
        faster = [places[Rates.name, entity, "shown", short] for entity, short, _ in of]
        slower = [places[Rates.name, entity, "shown", long] for entity, _, long in of]
        self._faster, self._slower = np.array(faster, np.int64), np.array(slower, np.int64)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """True or false."""
        return {"trend": values.flag(raw.get("trend", False), "features", "trend")}

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """One for each half-life of each entity but the slowest."""
        steps = [*zip(features.speeds, pairwise(features.declared.half_lives_h), strict=False)]
        for entity in features.entities if features.declared.trend else ():
            for speed, (short, long) in steps:
                measure = cls.name, entity_measure(entity), Hours(short), Hours(long)
                name, differs = f"{entity.name}/trend.{speed}", bool(entity.right)
                yield Column(cls.name, name, measure, differs, entity.own, entity.name)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """From the columns of rates."""
        dense_NF[:, self.at] = LOG_COUNT * (dense_NF[:, self._faster] - dense_NF[:, self._slower])
