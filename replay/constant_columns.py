"""Columns of features with one value in a whole log: these teach nothing."""

import numpy as np
from numpy.typing import NDArray

from recsys.features.feature_set import FeatureSet

_AT_LEAST = 1_000  # items, before anything is said


class ConstantColumns:
    """Follows the dense features of a log, but columns of a list, which are 0 in lists of one item."""

    def __init__(self, features: FeatureSet) -> None:
        self._names = features.dense_names[: len(features.dense_names) - features.list_columns]
        self._columns = np.arange(len(self._names))  # without a second value so far
        self._values: NDArray[np.float32] | None = None
        self._items = 0

    def add(self, dense_NF: NDArray[np.float32]) -> None:
        """Takes the features (N, F) of the items of a list."""
        if not len(dense_NF) or not len(self._columns):
            return
        own = dense_NF[:, self._columns]
        values = own[0] if self._values is None else self._values
        same = (own == values).all(0)
        self._columns, self._values = self._columns[same], values[same]
        self._items += len(dense_NF)

    @property
    def names(self) -> list[str]:
        """Columns with one value; empty after few items."""
        return [self._names[column] for column in self._columns if self._items >= _AT_LEAST]
