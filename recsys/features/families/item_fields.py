"""Numbers and vectors of items, as the catalogue keeps them."""

from collections.abc import Iterator, Sequence
from math import copysign, log1p
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from recsys.events.field_schema import NUMERIC
from recsys.features.columns import Column
from recsys.features.families.base import Family, Floats, RequestView

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

_LARGEST: Final = float(np.finfo(np.float32).max)


class ItemNumbers(Family):
    """A column for each numeric field of items, on a signed logarithmic scale."""

    name = "numbers"

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """In the order of the schema."""
        for name in features.schema.names("item", NUMERIC):
            yield Column(cls.name, f"item.{name}", (cls.name, name), True)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """The first of a catalogue's numbers."""
        width = self.at.stop - self.at.start
        dense_NF[:, self.at] = request.catalogue.numbers[:, :width][request.candidates]


class Vectors(Family):
    """A column for each number of a vector. They don't count as columns in which candidates differ."""

    name = "vectors"

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """In the order of the schema."""
        for name, length in features.schema.vectors:
            for n in range(length):
                yield Column(cls.name, f"item.{name}[{n}]", (cls.name, name, n))

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """The last of a catalogue's numbers."""
        width = self.at.stop - self.at.start
        dense_NF[:, self.at] = request.catalogue.numbers[:, -width:][request.candidates]


def log_scale(value: Any) -> float:
    """A number on a signed log scale; 0 for anything else."""
    return signed_log(number_of(value))


def number_of(value: Any, other: float = 0.0) -> float:
    """A number that float32 can hold; ``other`` for anything else."""
    valid = isinstance(value, int | float) and abs(value) <= _LARGEST
    return float(value) if valid else other


def signed_log(value: float) -> float:
    """A number on a logarithmic scale, on either side of 0."""
    return copysign(log1p(abs(value)), value)
