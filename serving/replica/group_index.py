"""Items by author and tag: indices by group key."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.growable import grown

Indices = NDArray[np.int64]


class _Members:
    """Members of one group as an array with spare room, so that adding one doesn't copy the rest."""

    def __init__(self, members: Indices) -> None:
        self.room, self.count = members, len(members)

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
                self._groups[key] = _Members(np.empty(0, np.int64))
            self._groups[key].append(index)

    def members(self, key: int) -> Indices:
        """Items of a group in the order in which they joined: a view, valid until the next move."""
        group = self._groups.get(key)
        return np.empty(0, np.int64) if group is None else group.room[: group.count]

    def saved(self, name: str) -> dict[str, Indices]:
        """All groups as arrays, under names that begin with ``name``, for ``restore``."""
        keys, members = list(self._groups), [*map(self.members, self._groups)]
        return {
            f"{name}_keys": np.array(keys, np.int64),
            f"{name}_bounds": np.cumsum([0, *map(len, members)], dtype=np.int64),
            f"{name}_members": np.concatenate([np.empty(0, np.int64), *members]),
        }

    def restore(self, saved: Mapping[str, NDArray[Any]], name: str) -> None:
        """Replaces all groups by saved ones, whose arrays it changes."""
        self.moves += 1
        keys, bounds = saved[f"{name}_keys"].tolist(), saved[f"{name}_bounds"]
        members = np.split(saved[f"{name}_members"], bounds[1:-1])
        self._groups = {key: _Members(m) for key, m in zip(keys, members, strict=False)}
