"""The catalogue: items as columns, folded from the `items` topic, gathered by index.

An item keeps its index for the lifetime of the process; a removed item is no longer alive.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.growable import grown
from recsys.arrays.id_map import IdMap
from recsys.arrays.key_index import place_of
from recsys.events.event_types import MAX_TIME_MS, Item
from recsys.events.field_schema import NUMERIC
from recsys.events.hashing import Id, key_of
from recsys.features.families.item_fields import log_scale, number_of
from recsys.features.feature_set import FeatureSet

_LONGEST: Final = 100.0  # length of a vector; embeddings are shorter
_COLUMNS: Final = ("_keys", "_numbers", "_exact", "_alive", "_published_ms")


class PackedList(Sequence[Any]):
    """Values of a snapshot, decoded from MessagePack at each access: value i from ``bounds[i]`` on. Values
    that are set later stay decoded."""

    def __init__(self, packed: NDArray[np.uint8], bounds: NDArray[np.int64]) -> None:
        self._packed, self._bounds, self._count = packed, bounds, len(bounds) - 1
        self._changed: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._count

    def __setitem__(self, index: int, value: Any) -> None:
        self._changed[range(self._count)[index]] = value

    def append(self, value: Any) -> None:
        self._changed[self._count] = value
        self._count += 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(self._count)[index]
        if index in self._changed:
            return self._changed[index]
        start, stop = self._bounds[index : index + 2].tolist()
        return msgspec.msgpack.decode(self._packed[start:stop].data)


class Catalogue:
    """Items by index: keys int64 (n, I), numbers float32 (n, M), alive bool (n,), first publication int64
    (n,) in milliseconds, 0 if unpublished. See FeatureSet for I, M. ``living``: ``alive`` as a bitmap, cheap
    to copy for each request."""

    def __init__(self, features: FeatureSet, capacity: int = 1024) -> None:
        self.features = features
        self.ids: list[Id] | PackedList = []
        self.fields: list[dict[str, Any]] | PackedList = []
        # The slot of a key is its item's index: two ids with colliding keys (see ``key_of``) are one item.
        self._by_key = IdMap(capacity)
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
        return self.index_of_key(key_of("item", item_id))

    def index_of_key(self, key: int) -> int | None:
        """The index of the item with this key."""
        index = int(place_of(self._by_key.index, key))
        return None if index < 0 else index

    def indices_of_keys(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The index of each key's item, or -1."""
        return self._by_key.find(keys)

    def apply(self, item: Item) -> int:
        """Adds, changes or removes an item and returns its index. A change replaces all its fields."""
        index = self.index_of(item.item_id)
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
        index = self.index_of(item_id)
        return self.apply(Item(time_ms=0, item_id=item_id)) if index is None else index

    def reserve(self, more: int) -> None:
        """Makes room for ``more`` items. Other threads may read meanwhile, none may write."""
        rows = len(self.ids) + more
        for name in _COLUMNS:
            setattr(self, name, grown(getattr(self, name), rows))
        self._by_key.reserve(more)

    def saved(self) -> dict[str, NDArray[Any]]:
        """All items as arrays, for ``restore`` of a catalogue of the same feature set."""
        # Spare rows are saved too, so that arrays stay mapped when an item is added.
        self.reserve(len(self) // 8)
        columns = {name: getattr(self, name)[: len(self) * 9 // 8] for name in _COLUMNS}
        columns |= {"cells": self._by_key.index, "cell_keys": self._by_key.key_room}
        return columns | _packed("ids", self.ids) | _packed("fields", self.fields)

    def restore(self, saved: Mapping[str, NDArray[Any]]) -> None:
        """Replaces all items by saved ones. It changes the arrays."""
        for name in _COLUMNS:
            setattr(self, name, saved[name])
        self.ids = PackedList(saved["ids"], saved["ids_bounds"])
        self.fields = PackedList(saved["fields"], saved["fields_bounds"])
        self.living = Bitmap.of(self.alive)
        self._by_key = IdMap.of(saved["cells"], saved["cell_keys"], len(self))

    def _append(self, item_id: Id) -> int:
        index = len(self.ids)
        self.reserve(1)
        self.ids.append(item_id)
        self.fields.append({})
        self.living.grow(len(self.ids))
        self._keys[index, 0] = key_of("item", item_id)
        self._by_key.insert(self._keys[index, :1])  # found even if its fields never arrive
        return index


def _packed(name: str, values: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """Arrays of a ``PackedList``."""
    encoded = [*map(msgspec.msgpack.encode, values)]
    bounds = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_bounds": bounds}


def _time_ms(value: Any) -> float:
    """A time, milliseconds or ISO text, in whole milliseconds; NaN for none, as 0 and -1 are."""
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            return np.nan
        value = int(parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp() * 1000)
    number = number_of(value)
    is_time = abs(number) <= MAX_TIME_MS and not -1 <= number < 1
    return round(number) if is_time else np.nan


def _numbers(features: FeatureSet, fields: dict[str, Any]) -> NDArray[np.float32]:
    """Numeric fields on a signed log scale, then vectors, of length ``_LONGEST`` at most: one item must
    not outweigh all others in the network. 0 for missing or invalid numbers."""
    out = [log_scale(fields.get(name)) for name in features.schema.names("item", NUMERIC)]
    for name, length in features.schema.vectors:
        value = fields.get(name)
        valid = isinstance(value, list) and len(value) == length
        numbers = [*map(number_of, value)] if valid and value else [0.0] * length
        scale = min(1.0, _LONGEST / max(math.hypot(*numbers), 1.0))
        out.extend(number * scale for number in numbers)
    return np.array(out, np.float32)
