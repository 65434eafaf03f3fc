"""Items by author and tag: indices by group key."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.growable import grown

Indices = NDArray[np.int64]


@dataclass
class _Members:
    """Members of one group as an array with spare room, so that adding one doesn't copy the rest."""

    room: Indices
    count: int

    def append(self, index: int) -> None:
        self.room = grown(self.room, self.count + 1)
        self.room[self.count] = index
        self.count += 1

    def remove(self, index: int) -> None:
        at = int(np.flatnonzero(self.room[: self.count] == index)[0])
        self.room[at : self.count - 1] = self.room[at + 1 : self.count]
        self.count -= 1


class GroupIndex:
    """Item indices by group key, each a set that reads as an array. ``moves`` counts calls of ``move``."""

    def __init__(self) -> None:
        self.moves = 0
        self._items: dict[int, dict[int, None]] = {}
        self._arrays: dict[int, _Members] = {}  # of the groups that were read

    def move(self, index: int, old: Iterable[int], new: Iterable[int]) -> None:
        self.moves += 1
        for key in old:
            members, array = self._items.get(key, {}), self._arrays.get(key)
            if array is not None and index in members:
                array.remove(index)
            members.pop(index, None)
            if not members:
                self._items.pop(key, None)
                self._arrays.pop(key, None)
        for key in new:
            members, array = self._items.setdefault(key, {}), self._arrays.get(key)
            if array is not None and index not in members:
                array.append(index)
            members[index] = None

    def members(self, key: int) -> Indices:
        """Items of a group in the order in which they joined: a view, valid until the next move."""
        array = self._arrays.get(key)
        if array is None:
            members = self._items.get(key, {})
            array = _Members(np.fromiter(members, np.int64, len(members)), len(members))
            if members:
                self._arrays[key] = array
        return array.room[: array.count]
