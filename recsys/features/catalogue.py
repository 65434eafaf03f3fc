"""The catalogue: items as columns, folded from the `items` topic, gathered by index.

An item keeps its index for the lifetime of the process; a removed item is no longer alive.
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown
from recsys.arrays.id_map import IdMap
from recsys.arrays.key_index import place_of
from recsys.events.event_types import MAX_TIME_MS, Item
from recsys.events.field_schema import NUMERIC
from recsys.events.hashing import Id, key_of
from recsys.features.feature_set import FeatureSet, log_scale, number_of


class Catalogue:
    """Items by index: keys int64 (n, I), numbers float32 (n, M), alive bool (n,), first publication int64
    (n,) in milliseconds, 0 if unpublished. See FeatureSet for I, M. ``living``: ``alive`` as a bitmap, cheap
    to copy for each request."""

    def __init__(self, features: FeatureSet, capacity: int = 1024) -> None:
        self.features = features
        self.ids: list[Id] = []
        self.fields: list[dict[str, Any]] = []
        self._index: dict[str, int] = {}
        # Index of each key's item: two ids with colliding keys (see ``key_of``) share a slot.
        self._by_key = IdMap(capacity, columns={"index": np.zeros(capacity, np.int64)})
        self._keys = np.zeros((capacity, features.item_columns), np.int64)
        self._numbers = np.zeros((capacity, features.number_columns), np.float32)
        self._alive = np.zeros(capacity, np.bool_)
        self._published_ms = np.zeros(capacity, np.int64)
        self._numeric = features.schema.names("item", NUMERIC)
        self._times = tuple(t for t in features.schema.times if t != features.declared.age_field)
        self._exact = np.zeros((capacity, len(self._numeric) + len(self._times)))
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

    @property
    def published_ms(self) -> NDArray[np.int64]:
        return self._published_ms[: len(self.ids)]

    def exact(self, name: str) -> NDArray[Any]:
        """A declared number or time of each item (n,) as published, NaN for none; the first publication for
        the field of ``features.age``."""
        names = (*self._numeric, *self._times)
        return self._exact[: len(self), names.index(name)] if name in names else self.published_ms

    def index_of(self, item_id: Id) -> int | None:
        """The index of an item, alive or not; None if it was never published."""
        return self._index.get(str(item_id))

    def index_of_key(self, key: int) -> int | None:
        """The index of the item with this key."""
        slot = int(place_of(self._by_key.index, key))
        return None if slot < 0 else int(self._by_key.columns["index"][slot])

    def indices_of_keys(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of each key's item, or -1."""
        slots = self._by_key.find(keys)
        return np.where(slots < 0, np.int64(-1), self._by_key.columns["index"][slots])

    def apply(self, item: Item) -> int:
        """Adds, changes or removes an item and returns its index. A change replaces all its fields."""
        index = self._index.get(str(item.item_id))
        if index is None:
            index = self._append(item.item_id)
        self._alive[index] = not item.removed
        self.living.put(index, not item.removed)
        if not self._published_ms[index]:
            time_ms = _time_ms(item.fields.get(self.features.declared.age_field))
            self._published_ms[index] = item.time_ms if np.isnan(time_ms) else time_ms
        if not item.removed:
            self.fields[index] = item.fields
            self._keys[index] = self.features.item_keys(item.item_id, item.fields)
            self._numbers[index] = _numbers(self.features, item.fields)
            numbers = (item.fields.get(name) for name in self._numeric)
            times = (_time_ms(item.fields.get(name)) for name in self._times)
            self._exact[index] = [*(number_of(number, np.nan) for number in numbers), *times]
        return index

    def ensure(self, item_id: Id) -> int:
        """The index of an item; an unpublished one is added without fields."""
        index = self._index.get(str(item_id))
        return self.apply(Item(time_ms=0, item_id=item_id)) if index is None else index

    def reserve(self, more: int) -> None:
        """Makes room for ``more`` items. Other threads may read meanwhile, none may write."""
        rows = len(self.ids) + more
        for name in ("_keys", "_numbers", "_exact", "_alive", "_published_ms"):
            setattr(self, name, grown(getattr(self, name), rows))
        self._by_key.reserve(more)

    def _append(self, item_id: Id) -> int:
        index = len(self.ids)
        self.reserve(1)
        self.ids.append(item_id)
        self.fields.append({})
        self._index[str(item_id)] = index
        self.living.grow(len(self.ids))
        key = key_of("item", item_id)
        self._by_key.put(np.array([key], np.int64), {"index": np.array([index])})
        self._keys[index, 0] = key  # found by its key even if its fields never arrive
        return index


def _time_ms(value: Any) -> float:
    """A time, milliseconds or ISO text, in whole milliseconds; NaN for none."""
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            return np.nan
        return int(parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp() * 1000)
    number = number_of(value)
    return round(number) if 1 <= number <= MAX_TIME_MS else np.nan


def _numbers(features: FeatureSet, fields: dict[str, Any]) -> NDArray[np.float32]:
    """Numeric fields on a signed log scale, then vectors unchanged; 0 for missing or invalid numbers."""
    out = [log_scale(fields.get(name)) for name in features.schema.names("item", NUMERIC)]
    for name, length in features.schema.vectors:
        value = fields.get(name)
        valid = isinstance(value, list) and len(value) == length
        out.extend(map(number_of, value) if valid and value else [0.0] * length)
    return np.array(out, np.float32)
