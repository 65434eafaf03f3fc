"""A family of features: what it declares, its dense columns, and their numbers for a request.

Legend: N candidates, I item columns, U user columns, F dense columns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recsys.config.yaml_values import YamlValues
from recsys.features.columns import Column
from recsys.features.counters import CounterTable

if TYPE_CHECKING:
    from recsys.features.catalogue import Catalogue
    from recsys.features.covisits import Covisits
    from recsys.features.families.declared import Declared
    from recsys.features.families.rates import Gathered
    from recsys.features.feature_set import FeatureSet
    from recsys.features.session import Session

Floats = NDArray[np.float32]
Keys = NDArray[np.int64]
Fault = tuple[tuple[str | int, ...], str]  # keys in the definition, and the reason with its remedy


@dataclass(slots=True)
class RequestView:
    """All that the columns of a request are computed from: its candidates, and what was known before it.
    ``halves``: the keys that entities are crossed with, by name."""

    session: "Session"
    context: dict[str, Any]
    candidates: Keys
    items_NI: Keys
    catalogue: "Catalogue"
    counters: CounterTable
    covisits: "Covisits | None"
    halves: dict[str, int]
    gathered: "Gathered"
    now_ms: int


class Family:
    """Class methods answer for a definition; an instance writes the columns of one feature set.

    ``name``: of its columns' family. ``keys``: its keys under ``features`` of ``app.yaml``.
    """

    name: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, features: "FeatureSet") -> None:
        """Computes what all requests share."""
        self.features, self.at = features, features.span(self.name)

    @classmethod
    def read(cls, raw: Mapping[str, Any], values: YamlValues) -> dict[str, Any]:
        """Its fields of ``Declared`` from the mapping under ``features``; raises YamlError."""
        return {}

    @classmethod
    def faults(cls, features: "FeatureSet") -> Iterator[Fault]:
        """Faults of its declaration, which the other parts of the definition show."""
        return iter(())

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """Its columns, which follow those of the families ``before`` it."""
        raise NotImplementedError

    @classmethod
    def counter_kinds(cls, declared: "Declared") -> Iterable[str]:
        """Kinds of counters that it adds to every entity."""
        return ()

    @classmethod
    def engagement_kinds(cls, declared: "Declared") -> Iterable[str]:
        """Kinds of engagement that its counters read."""
        return ()

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """Writes its columns ``at`` for each candidate; those of families before it are there."""

    def write_list(self, dense_NF: Floats) -> None:
        """Writes what it has only for the items of a list."""

    def write_shown(self, dense_NF: Floats) -> None:
        """Writes what is logged of the list as it is shown, and never scored."""


def one_of(values: Sequence[str]) -> str:
    """The values that are possible, for an error."""
    return f"one of {', '.join(values)}" if values else "none, since none is declared"
