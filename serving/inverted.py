"""Which items share an author or a tag: indices by group key."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class Inverted:
    """Item indices by group key, each a set that reads as an array."""

    def __init__(self) -> None:
        self._items: dict[int, dict[int, None]] = {}
        self._arrays: dict[int, Indices] = {}

    def move(self, index: int, old: Iterable[int], new: Iterable[int]) -> None:
        """An item left some groups and entered others."""
        for key in old:
            self._items[key].pop(index, None)
            self._arrays.pop(key, None)
        for key in new:
            self._items.setdefault(key, {})[index] = None
            self._arrays.pop(key, None)

    def of(self, key: int) -> Indices:
        """The items of a group, in the order in which they entered."""
        array = self._arrays.get(key)
        if array is None:
            array = np.fromiter(self._items.get(key, {}), np.int64)
            self._arrays[key] = array
        return array
