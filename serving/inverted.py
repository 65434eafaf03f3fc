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
            members = self._items.get(key, {})
            members.pop(index, None)
            self._arrays.pop(key, None)
            if not members:
                self._items.pop(key, None)
        for key in new:
            self._items.setdefault(key, {})[index] = None
            self._arrays.pop(key, None)

    def of(self, key: int) -> Indices:
        """The items of a group, in the order in which they entered; none of a group never met."""
        array = self._arrays.get(key)
        if array is None:
            members = self._items.get(key, {})
            array = np.fromiter(members, np.int64, len(members))
            if members:
                self._arrays[key] = array
        return array
