"""Conditions of a request on declared fields of items: equal, one of several, in a range.

A condition is a value, a list of values, or ``{"min": …, "max": …}`` for numbers, both inclusive. Values of
categories are compared as texts, as features read them; of several values of an item one must match. Numbers
are compared exactly; an item without a number is in no range.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from recsys.events.field_schema import CATEGORICAL, NUMERIC
from recsys.events.rejection import Rejected, check_values
from recsys.features.feature_set import FeatureSet
from serving.filters.filter import Filter
from serving.query import Query
from serving.replica.replica import Replica
from serving.replica.value_index import ALL_ITEMS, Mask, Rows
from serving.request import Candidates, Closed

MOST_VALUES: Final = 100
_TEXTS: Final = f"a text, or a list of 1 to {MOST_VALUES} texts"
_NUMBERS: Final = f"a number, a list of 1 to {MOST_VALUES}, or a range with min, max or both, min at most max"


class Conditions(Filter):
    """Items that don't meet the request's ``filters``."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed | None:
        filters = query.request.filters
        return ~filter_mask(replica, filters, candidates.rows) if filters else None


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


def filter_mask(replica: Replica, filters: Mapping[str, Any], among: Rows = ALL_ITEMS) -> Mask:
    """Items ``among`` some (n,), alive or not, that meet all conditions; read-only without any: all ask."""
    count = len(replica.catalogue.alive[among])
    if not filters:
        return np.broadcast_to(np.True_, count)
    mask = np.ones(count, np.bool_)
    for name, condition in filters.items():
        if dict(replica.features.schema.item).get(name) == CATEGORICAL:
            mask &= replica.values.marks(name, _listed(condition), among)
        else:
            mask &= _with_numbers(replica, name, condition, among)
    return mask


def _with_numbers(replica: Replica, name: str, condition: Any, among: Rows) -> Mask:
    numbers = replica.catalogue.exact(name)[among]
    if isinstance(condition, dict):
        low, high = condition.get("min", -np.inf), condition.get("max", np.inf)
        return np.asarray((numbers >= low) & (numbers <= high))
    return np.isin(numbers, condition)


def _listed(condition: Any) -> list[Any]:
    return condition if isinstance(condition, list) else [condition]
