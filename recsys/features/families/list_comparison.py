"""Comparison of a list's items with each other, and the list's length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import Column
from recsys.features.families.base import Family, Fault, Floats

if TYPE_CHECKING:
    from recsys.features.families.declared import Declared
    from recsys.features.feature_set import FeatureSet

LENGTH: Final = "list.length"
_EQUAL: Final = np.float32(0.05)  # values of a list within this are ties, more or less


@dataclass(frozen=True)
class DeclaredLists:
    """``list_context``: entities whose rates are compared with those of the list's other items, by their rank
    too. ``whole_list``: the list's length, and the difference to the list's mean of every column in which its
    items may differ."""

    list_context: tuple[str, ...] = ()
    whole_list: bool = False


class ListComparison(Family):
    """Differences to the mean and ranks within the list, 0 when single items are scored, then its length."""

    name, keys = "list", ("list",)

    def __init__(self, features: "FeatureSet") -> None:
        super().__init__(features)
        self._compared = np.array(features.compared, np.int64)
        self._ranked = np.array(features.ranked, np.int64)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """``false``: none. Else a list that counts as shown as a whole has all of them."""
        listed = raw.get("list", [])
        whole = values.top.get("shown") == "list" and listed is not False
        names = values.names([] if listed is False else listed, "features", "list", pattern=None)
        return {"list_context": names, "whole_list": whole}

    @classmethod
    def faults(cls, features: "FeatureSet") -> Iterator[Fault]:
        """Entities without rates."""
        for name in features.declared.list_context:
            if name not in [entity.name for entity in features.entities]:
                reason = f"features.list has {name!r}, which isn't among features.rates"
                yield ("features", "list"), reason

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """They are the last, so that the features of a single item end before them."""
        declared = features.declared
        for how, places in (("above", compared(declared, before)), ("rank", ranked(declared, before))):
            for one in map(before.__getitem__, places):
                yield Column(cls.name, f"list.{how}({one.name})", (f"list.{how}", one.measure))
        if declared.whole_list:
            yield Column(cls.name, LENGTH, (LENGTH,))

    def write_list(self, dense_NF: Floats) -> None:
        """The rank is from -1/2 to 1/2, and nearly equal values are nearly equal: it must not depend on the
        last bits of counters."""
        values, n, start = dense_NF[:, self._compared], len(dense_NF), self.at.start
        ranks = start + len(self._compared)
        dense_NF[:, start:ranks] = values - values.mean(0)
        if len(self._ranked):
            values = dense_NF[:, self._ranked]
            wins = np.tanh((values[:, None] - values[None]) / _EQUAL).sum(1)
            dense_NF[:, ranks : ranks + len(self._ranked)] = wins / np.float32(2 * max(1, n - 1))
        if self.features.declared.whole_list:
            dense_NF[:, -1] = np.log(n)


def compared(declared: "Declared", columns: Sequence[Column]) -> tuple[int, ...]:
    """Columns of which the difference to the list's mean is one: those that are ranked, or of a whole list
    all but vectors in which its items may differ."""
    if declared.whole_list:
        return tuple(at for at, column in enumerate(columns) if column.differs)
    return ranked(declared, columns)


def ranked(declared: "Declared", columns: Sequence[Column]) -> tuple[int, ...]:
    """Columns that are ranked within the list: those of each declared entity, then those of no entity."""
    names = (*declared.list_context, "") if declared.list_context else ()
    return tuple(at for name in names for at, one in enumerate(columns) if one.ranked and one.entity == name)
