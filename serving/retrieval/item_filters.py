"""Filters of a request on declared fields of items: equal, one of several, in a range.

A condition is a value, a list of values, or ``{"min": …, "max": …}`` for numbers, both inclusive. Values of
categories are compared as texts, as features read them; of several values of an item one must match. Numbers
are compared exactly; an item without a number is in no range.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only
from recsys.events.field_schema import CATEGORICAL, NUMERIC
from recsys.events.hashing import key_of
from recsys.events.rejection import Rejected, check_values
from recsys.features.feature_set import FeatureSet
from serving.replica.replica import Replica

Rows = NDArray[np.int64] | slice
Mask = NDArray[np.bool_]
_ALL: Final = slice(None)
MOST_VALUES: Final = 100
_TEXTS: Final = f"a text, or a list of 1 to {MOST_VALUES} texts"
_NUMBERS: Final = (
    f"a number, a list of 1 to {MOST_VALUES}, or a range with min, max or both, min at most max"
)


def check_filters(features: FeatureSet, filters: Mapping[str, Any]) -> None:
    """Raises Rejected for a field that isn't declared, and for a condition that its kind can't have."""
    check_values({"filters": filters})
    kinds = dict(features.schema.item) | dict.fromkeys(features.schema.times, NUMERIC)
    if age := features.declared.age_field:
        kinds[age] = NUMERIC
    for name, condition in filters.items():
        kind, is_range = kinds.get(name), isinstance(condition, dict)
        values = list(condition.values()) if is_range else _listed(condition)
        types, expected = (int | float, _NUMBERS) if kind == NUMERIC else (str | int, _TEXTS)
        valid = 0 < len(values) <= MOST_VALUES and all(isinstance(value, types) for value in values)
        if is_range:
            valid = valid and kind == NUMERIC and condition.keys() <= {"min", "max"}
            valid = valid and condition.get("min", -np.inf) <= condition.get("max", np.inf)
        if kind not in (CATEGORICAL, NUMERIC):
            names = [n for n, of in kinds.items() if of in (CATEGORICAL, NUMERIC)]
            valid, expected = False, f"a declared field of items: {', '.join(names) or 'none'}"
        if not valid:
            raise Rejected(f"filters.{name}", condition, expected)


def filter_mask(replica: Replica, filters: Mapping[str, Any], among: Rows = _ALL) -> Mask:
    """Items ``among`` some (n,), alive or not, that meet all conditions; read-only without any: all ask."""
    count = len(replica.catalogue.alive[among])
    if not filters:
        return np.broadcast_to(np.True_, count)
    mask = np.ones(count, np.bool_)
    for name, condition in filters.items():
        if dict(replica.features.schema.item).get(name) == CATEGORICAL:
            mask &= _with_values(replica, name, condition, among)
        else:
            mask &= _with_numbers(replica, name, condition, among)
    return mask


def _with_values(replica: Replica, name: str, condition: Any, among: Rows) -> Mask:
    keys_NI, slot = replica.catalogue.keys[among], f"item.{name}"
    start, width = replica.features.slot_starts.get(slot, replica.features.slot_starts["content"])
    wanted = np.unique(np.array([key_of(slot, v) for v in _listed(condition)], np.int64))
    mask = np.zeros(len(keys_NI), np.bool_)
    _find(keys_NI, start, start + width, wanted, mask)
    for key in wanted.tolist():
        members = replica.surplus.members(key)
        mask[members if isinstance(among, slice) else np.isin(among, members)] = True
    return mask


def _with_numbers(replica: Replica, name: str, condition: Any, among: Rows) -> Mask:
    numbers = replica.catalogue.exact(name)[among]
    if isinstance(condition, dict):
        low, high = condition.get("min", -np.inf), condition.get("max", np.inf)
        return np.asarray((numbers >= low) & (numbers <= high))
    return np.isin(numbers, condition)


def _listed(condition: Any) -> list[Any]:
    return condition if isinstance(condition, list) else [condition]


_int = types.int64


@kernel(types.void(read_only(_int, 2), _int, _int, read_only(_int, 1), types.boolean[::1]))
def _find(keys_NI: Any, start: Any, stop: Any, wanted: Any, present: Any) -> None:
    """Marks the items with one of the ascending ``wanted`` keys in some of their columns."""
    for item in range(keys_NI.shape[0]):
        for column in range(start, stop):
            key = keys_NI[item, column]
            place = np.searchsorted(wanted, key)
            present[item] |= place < len(wanted) and wanted[place] == key
