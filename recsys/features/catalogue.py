"""The catalogue: items as columns, folded from the `items` topic, gathered by index.

An item keeps its index for the lifetime of the process; a removed item is no longer alive.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown
from recsys.arrays.key_index import cells_for, empty_index, find, insert, place_of, with_room
from recsys.events.event_types import Item
from recsys.events.field_schema import NUMERIC
from recsys.events.hashing import Id, key_of
from recsys.features.feature_set import FeatureSet

_LARGEST = float(np.finfo(np.float32).max)


class Catalogue:
    """Items by index: keys int64 (n, I), numbers float32 (n, M), alive bool (n,). See FeatureSet for I, M.

    ``living`` is ``alive`` as a bitmap, cheap to copy for each request.
    """

    def __init__(self, features: FeatureSet, capacity: int = 1024) -> None:
        self.features = features
        self.ids: list[Id] = []
        self.fields: list[dict[str, Any]] = []
        self._index: dict[str, int] = {}
        # Index by place of the key: two ids with colliding keys (see ``key_of``) share a place.
        self._places = empty_index(cells_for(capacity))
        self._place_keys = np.zeros(capacity, np.int64)
        self._at = np.zeros(capacity, np.int64)
        self._placed = 0
        self._keys = np.zeros((capacity, features.item_columns), np.int64)
        self._numbers = np.zeros((capacity, features.number_columns), np.float32)
        self._alive = np.zeros(capacity, np.bool_)
        self.living = Bitmap()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def keys(self) -> NDArray[np.int64]:
        return self._keys[: len(self.ids)]

    @property
    def numbers(self) -> NDArray[np.float32]:
        return self._numbers[: len(self.ids)]

    @property
    def alive(self) -> NDArray[np.bool_]:
        return self._alive[: len(self.ids)]

    def index_of(self, item_id: Id) -> int | None:
        """The index of an item, alive or not; None if it was never published."""
        return self._index.get(str(item_id))

    def index_of_key(self, key: int) -> int | None:
        """The index of the item with this key."""
        place = int(place_of(self._places, key))
        return None if place < 0 else int(self._at[place])

    def indices_of_keys(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of each key's item, or -1."""
        places = np.empty(len(keys), np.int64)
        find(self._places, np.ascontiguousarray(keys, np.int64), places)
        return np.where(places < 0, np.int64(-1), self._at[places])

    def apply(self, item: Item) -> int:
        """Adds, changes or removes an item and returns its index. A change replaces all its fields."""
        index = self._index.get(str(item.item_id))
        if index is None:
            index = self._append(item.item_id)
        self._alive[index] = not item.removed
        self.living.put(index, not item.removed)
        if not item.removed:
            self.fields[index] = item.fields
            self._keys[index] = self.features.item_keys(item.item_id, item.fields)
            self._numbers[index] = _numbers(self.features, item.fields)
        return index

    def ensure(self, item_id: Id) -> int:
        """The index of an item; an unpublished one is added without fields."""
        index = self._index.get(str(item_id))
        return self.apply(Item(time_ms=0, item_id=item_id)) if index is None else index

    def reserve(self, more: int) -> None:
        """Makes room for ``more`` items. Other threads may read meanwhile, none may write."""
        rows = len(self.ids) + more
        for name in ("_keys", "_numbers", "_alive", "_place_keys", "_at"):
            setattr(self, name, grown(getattr(self, name), rows))
        self._places = with_room(self._places, rows)

    def _append(self, item_id: Id) -> int:
        index = len(self.ids)
        self.reserve(1)
        self.ids.append(item_id)
        self.fields.append({})
        self._index[str(item_id)] = index
        self.living.grow(len(self.ids))
        key = key_of("item", item_id)
        self._place(key, index)
        self._keys[index, 0] = key  # found by its key even if its fields never arrive
        return index

    def _place(self, key: int, index: int) -> None:
        place, keys = np.empty(1, np.int64), np.array([key], np.int64)
        self._placed = int(insert(self._places, self._place_keys, self._placed, keys, place))
        self._at[place[0]] = index


def _numbers(features: FeatureSet, fields: dict[str, Any]) -> NDArray[np.float32]:
    """Numeric fields on a signed log scale, then vectors unchanged; 0 for missing or invalid numbers."""
    out: list[float] = []
    for name in features.schema.names("item", NUMERIC):
        number = _number(fields.get(name))
        out.append(math.copysign(math.log1p(abs(number)), number))
    for name, length in features.schema.vectors:
        value = fields.get(name)
        valid = isinstance(value, list) and len(value) == length
        out.extend(map(_number, value) if valid and value else [0.0] * length)
    return np.array(out, np.float32)


def _number(value: Any) -> float:
    valid = isinstance(value, int | float) and abs(value) <= _LARGEST
    return float(value) if valid else 0.0
