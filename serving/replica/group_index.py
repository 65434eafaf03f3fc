"""Which items share an author or a tag: indices by group key."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


@dataclass
class _Column:
    """The members of one group as an array with room behind, so that one more costs no copy of the rest."""

    room: Indices
    count: int

    def append(self, index: int) -> None:
        if self.count == len(self.room):
            self.room = np.concatenate([self.room, np.empty(max(8, self.count), np.int64)])
        self.room[self.count] = index
        self.count += 1

    def remove(self, index: int) -> None:
        at = int(np.flatnonzero(self.room[: self.count] == index)[0])
        self.room[at : self.count - 1] = self.room[at + 1 : self.count]
        self.count -= 1


class Inverted:
    """Item indices by group key, each a set that reads as an array. ``moves``: how often one moved."""

    def __init__(self) -> None:
        self.moves = 0
        self._items: dict[int, dict[int, None]] = {}
        self._columns: dict[int, _Column] = {}  # of the groups that were asked for

    def move(self, index: int, old: Iterable[int], new: Iterable[int]) -> None:
        """An item left some groups and entered others."""
        self.moves += 1
        for key in old:
            members, column = self._items.get(key, {}), self._columns.get(key)
            if column is not None and index in members:
                column.remove(index)
            members.pop(index, None)
            if not members:
                self._items.pop(key, None)
                self._columns.pop(key, None)
        for key in new:
            members, column = self._items.setdefault(key, {}), self._columns.get(key)
            if column is not None and index not in members:
                column.append(index)
            members[index] = None

    def of(self, key: int) -> Indices:
        """The items of a group, in the order in which they entered; none of a group never met. A view, valid
        until the next move."""
        column = self._columns.get(key)
        if column is None:
            members = self._items.get(key, {})
            column = _Column(np.fromiter(members, np.int64, len(members)), len(members))
            if members:
                self._columns[key] = column
        return column.room[: column.count]
