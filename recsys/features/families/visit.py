"""Co-visits of an item with the viewer's newest visit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import Column
from recsys.features.families.base import Family, Floats, RequestView
from recsys.features.families.near import nearness

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet
    from recsys.features.session import Entry

NEAR_IN_VISIT: Final = "item.near.visit"


@dataclass(frozen=True)
class DeclaredVisit:
    """``visit_s``: seconds of the pause that ends a visit; 0: no column of co-visits with the newest one."""

    visit_s: float = 0.0


class Visit(Family):
    """Logarithm of an item's co-visits with the items since the viewer's last pause."""

    name, keys = "visit", ("visit",)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """The pause, a duration."""
        return {"visit_s": values.seconds(raw["visit"], "features", "visit")} if "visit" in raw else {}

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """One, of one measure with those of the same pause."""
        if pause_s := features.declared.visit_s:
            yield Column(cls.name, NEAR_IN_VISIT, (cls.name, pause_s), True, True)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """By the newest entries of the history."""
        pause_s = self.features.declared.visit_s
        visit = newest_visit(request.session.history, pause_s, request.now_ms)
        dense_NF[:, self.at] = nearness(request, visit)


def newest_visit(history: Iterable["Entry"], pause_s: float, now_ms: int) -> list["Entry"]:
    """The newest entries that no pause separates from each other or from now, oldest first."""
    visit: list[Entry] = []
    after_ms = now_ms
    for entry in reversed(list(history)):
        if after_ms - entry.time_ms > 1000 * pause_s:
            break
        visit.append(entry)
        after_ms = entry.time_ms
    return visit[::-1]
