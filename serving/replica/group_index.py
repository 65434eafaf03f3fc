"""Items by author and tag: indices by group key."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.growable import grown
from recsys.arrays.id_map import IdMap
from recsys.arrays.key_index import place_of

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
        self._groups: dict[int, _Members] = {}  # those that changed since ``restore``
        self._saved, self._bounds = IdMap(), np.zeros(1, np.int64)
        self._members = np.empty(0, np.int64)

    def move(self, index: int, old: Iterable[int], new: Iterable[int]) -> None:
        """Moves an item from ``old``, which contains all groups that it is in, to ``new``."""
        self.moves += 1
        for key in old:
            if len(self.members(key)):
                self._changed(key).remove(index)
                if not self._groups[key].count and not len(self._restored(key)):
                    del self._groups[key]
        for key in dict.fromkeys(new):
            self._changed(key).append(index)

    def members(self, key: int) -> Indices:
        """Items of a group in the order in which they joined: a view, valid until the next move."""
        group = self._groups.get(key)
        return self._restored(key) if group is None else group.room[: group.count]

    def saved(self, name: str) -> dict[str, Indices]:
        """All groups as arrays, under names that begin with ``name``, for ``restore``."""
        saved_or_new = dict.fromkeys([*self._saved.keys.tolist(), *self._groups])
        keys = [key for key in saved_or_new if len(self.members(key))]
        members = [*map(self.members, keys)]
        ids = IdMap(len(keys))
        ids.insert(np.array(keys, np.int64))
        return {
            f"{name}_cells": ids.index,
            f"{name}_keys": ids.keys,
            f"{name}_bounds": np.cumsum([0, *map(len, members)], dtype=np.int64),
            f"{name}_members": np.concatenate([np.empty(0, np.int64), *members]),
        }

    def restore(self, saved: Mapping[str, NDArray[Any]], name: str) -> None:
        """Replaces all groups by saved ones, whose arrays it changes."""
        self.moves += 1
        keys = saved[f"{name}_keys"]
        self._saved, self._groups = IdMap.of(saved[f"{name}_cells"], keys, len(keys)), {}
        self._bounds, self._members = saved[f"{name}_bounds"], saved[f"{name}_members"]

    def _changed(self, key: int) -> _Members:
        if key not in self._groups:
            self._groups[key] = _Members(self._restored(key))
        return self._groups[key]

    def _restored(self, key: int) -> Indices:
        place = int(place_of(self._saved.index, key))
        start, stop = self._bounds[place : place + 2].tolist() if place >= 0 else (0, 0)
        return self._members[start:stop]
