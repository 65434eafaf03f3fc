"""Items by the values of their fields: marks among some items, and sets that are kept as items change."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.arrays.compiled import kernel, read_only
from recsys.config.policy_config import Rule
from recsys.events.field_schema import CATEGORICAL, spellings_of, values_of
from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from serving.replica.group_index import GroupIndex

Rows = NDArray[np.int64] | slice
Mask = NDArray[np.bool_]
ALL_ITEMS: Final = slice(None)
_MOST: Final = 2000  # sets that are kept: 250 MB at a million items


class ValueIndex:
    """Items of a catalogue by value. ``surplus``: items by values for which they have no key column."""

    def __init__(self, catalogue: Catalogue, surplus: GroupIndex) -> None:
        self._catalogue, self._surplus = catalogue, surplus
        self._declared = catalogue.features.schema.names("item", CATEGORICAL)
        self._kept: dict[tuple[str, str], Bitmap] = {}  # by field and value, last used last

    def items(self, field: str, value: str) -> Bitmap:
        """Items, living or not, whose field is a value or a list that contains it: as a rule spells the value
        (``spellings_of``). It is read-only and changes with the items. The first call reads all of them."""
        items = self._kept.pop((field, value), None)
        if items is None:
            items = Bitmap.of(self.having(field, value, ALL_ITEMS))
        self._kept[field, value] = items
        if len(self._kept) > _MOST:
            del self._kept[next(iter(self._kept))]
        return items

    def closed_by(self, rules: Sequence[Rule]) -> Bitmap:
        """Living items that rules of a policy close: ``require``, and ``limit`` to none."""
        living, required = self._catalogue.living, dict[str, Bitmap]()
        closed = Bitmap(len(living))
        for rule in rules:
            if rule.do == "require":
                allowed = required.setdefault(rule.field, Bitmap(len(living)))
                allowed.unite(self.items(rule.field, rule.value))
            elif rule.excludes:
                closed.unite(self.items(rule.field, rule.value))
        for allowed in required.values():
            excluded = living.copy()
            excluded.subtract(allowed)
            closed.unite(excluded)
        return closed

    def update(self, indices: NDArray[np.int64]) -> None:
        """Reads items that were published, changed or removed."""
        for (field, value), items in self._kept.items():
            items.grow(len(self._catalogue))
            for index, has in zip(indices.tolist(), self.having(field, value, indices).tolist(), strict=True):
                items.put(index, has)

    def reread(self) -> None:
        """Reads all items again, after they were replaced by others."""
        self._kept = {of: Bitmap.of(self.having(*of, ALL_ITEMS)) for of in self._kept}

    def marks(self, field: str, values: Iterable[Any], among: Rows = ALL_ITEMS) -> Mask:
        """Marks items ``among`` some (n,) with one of the values in a declared field of categories."""
        features, slot = self._catalogue.features, f"item.{field}"
        keys_NI = self._catalogue.keys[among]
        start, width = features.slot_starts.get(slot, features.slot_starts["content"])
        wanted = np.unique(np.array([key_of(slot, value) for value in values], np.int64))
        marked = np.zeros(len(keys_NI), np.bool_)
        _find(keys_NI, start, start + width, wanted, marked)
        for key in wanted.tolist():
            members = self._surplus.members(key)
            marked[members if isinstance(among, slice) else np.isin(among, members)] = True
        return marked

    def having(self, field: str, value: str, among: Rows) -> Mask:
        """Marks items ``among`` some (n,) whose field, declared or not, is or contains a rule's value."""
        texts, fields = spellings_of(value), self._catalogue.fields
        if field in self._declared:
            return self.marks(field, texts, among)
        indices = range(len(fields)) if isinstance(among, slice) else among.tolist()
        has = [not {*texts}.isdisjoint(values_of(fields[index].get(field))) for index in indices]
        return np.array(has, np.bool_)


def counted_values(
    catalogue: Catalogue, item_keys: NDArray[np.int64], columns: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Keys of items' values in some columns, ascending, and how many of the items have each."""
    indices = catalogue.indices_of_keys(item_keys)
    keys_NC = catalogue.keys[indices[indices >= 0]][:, columns]
    keys, counts = np.unique(keys_NC, return_counts=True)
    return keys[keys != 0], counts[keys != 0].astype(np.float64)


_int = types.int64


@kernel(types.void(read_only(_int, 2), _int, _int, read_only(_int, 1), types.boolean[::1]))
def _find(keys_NI: Any, start: Any, stop: Any, wanted: Any, present: Any) -> None:
    """Marks the items with one of the ascending ``wanted`` keys in some of their columns."""
    for item in range(keys_NI.shape[0]):
        for column in range(start, stop):
            key = keys_NI[item, column]
            place = np.searchsorted(wanted, key)
            present[item] |= place < len(wanted) and wanted[place] == key
