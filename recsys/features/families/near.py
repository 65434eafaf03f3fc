"""Co-visits of an item with the viewer's history."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import Column
from recsys.features.families.base import Family, Floats, RequestView

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet
    from recsys.features.session import Entry

NEAR: Final = "item.near"
_UNIT: Final = 100.0  # scores of co-visits are about a hundredth


@dataclass(frozen=True)
class DeclaredNear:
    """``near``: co-visits with the history."""

    near: bool = False


class Near(Family):
    """Logarithm of an item's co-visits with the items of the history; 0 where there are no co-visits."""

    name, keys = "near", ("near",)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """On by default in a file."""
        return {"near": values.flag(raw.get("near", True), "features", "near")}

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """One, which a list ranks by."""
        if features.declared.near:
            yield Column(cls.name, NEAR, (cls.name,), True, True, ranked=True)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """By the whole history."""
        dense_NF[:, self.at] = nearness(request, request.session.history)


def nearness(request: RequestView, history: Iterable["Entry"]) -> NDArray[np.float64]:
    """Column (N, 1) of the candidates' co-visits with entries of the history."""
    if request.covisits is None:
        return np.zeros((1, 1))
    near_N = request.covisits.scores(request.items_NI[:, 0], history, request.now_ms)
    return np.asarray(np.log1p(_UNIT * near_N)[:, None])
