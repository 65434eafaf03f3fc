"""Items by author and tag: indices by group key."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.growable import grown

Indices = NDArray[np.int64]


class _Members:
    """Members of one group as an array with spare room, so that adding one doesn't copy the rest."""

    def __init__(self) -> None:
        self.room, self.count = np.empty(1, np.int64), 0

    def append(self, index: int) -> None:
        self.room = grown(self.room, self.count + 1)
        self.room[self.count] = index
        self.count += 1

    def remove(self, index: int) -> None:
        for at in np.flatnonzero(self.room[: self.count] == index):  # one, or none
            self.room[at : self.count - 1] = self.room[at + 1 : self.count]
            self.count -= 1


class GroupIndex:
    """Item indices by group key, each a set that reads as an array. ``moves`` counts calls of ``move``."""

    def __init__(self) -> None:
        self.moves = 0
        self._groups: dict[int, _Members] = {}

    def move(self, index: int, old: Iterable[int], new: Iterable[int]) -> None:
        """Moves an item from ``old``, which contains all groups that it is in, to ``new``."""
        self.moves += 1
        for key in old:
            if key in self._groups:
                self._groups[key].remove(index)
                if not self._groups[key].count:
                    del self._groups[key]
        for key in dict.fromkeys(new):
            if key not in self._groups:
                self._groups[key] = _Members()
            self._groups[key].append(index)

    def members(self, key: int) -> Indices:
        """Items of a group in the order in which they joined: a view, valid until the next move."""
        group = self._groups.get(key)
        return np.empty(0, np.int64) if group is None else group.room[: group.count]
