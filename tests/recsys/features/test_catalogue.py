from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.events.event_types import Item
from recsys.events.hashing import key_of
from recsys.features.catalogue import Catalogue
from recsys.features.feature_set import FeatureSet
from tests.support.field_values import WIDE, anything, names

FEATURES = FeatureSet(WIDE)


def item(item_id: str | int, removed: bool = False, **fields: Any) -> Item:
    return Item(time_ms=1, item_id=item_id, fields=fields, removed=removed)


def test_items_keep_their_index_whatever_happens_to_them() -> None:
    its = Catalogue(FEATURES, capacity=1)
    assert [its.apply(item(name)) for name in ("a", "b", "a")] == [0, 1, 0]
    assert its.apply(item("a", removed=True)) == 0
    assert its.alive.tolist() == [False, True] and len(its) == 2
    its.apply(item("a", author="x"))
    assert its.alive.all() and its.index_of("a") == 0 and its.index_of("c") is None
    assert its.keys[0].tobytes() == FEATURES.item_keys("a", {"author": "x"}).tobytes()


def test_a_change_replaces_all_fields() -> None:
    its = Catalogue(FEATURES)
    its.apply(item("a", author="x", price=3))
    its.apply(item("a", tags=["t"]))
    assert its.fields[0] == {"tags": ["t"]} and its.numbers[0, 0] == 0
    assert its.keys[0].tobytes() == FEATURES.item_keys("a", {"tags": ["t"]}).tobytes()


def test_it_grows_and_finds_items_by_id_and_by_key() -> None:
    its = Catalogue(FEATURES, capacity=2)
    for n in range(50):
        its.apply(item(n, price=n))
    assert its.index_of("7") == its.index_of(7) == 7
    assert its.index_of_key(key_of("item", 7)) == 7 and its.index_of_key(5) is None
    keys = np.array([key_of("item", n) for n in (49, 0, 7)] + [5, 0])
    assert its.indices_of_keys(keys).tolist() == [49, 0, 7, -1, -1]
    np.testing.assert_allclose(its.numbers[:, 0], np.log1p(np.arange(50)), rtol=1e-6)


def test_an_item_known_only_by_its_removal_has_its_key() -> None:
    its = Catalogue(FEATURES)
    its.apply(item("gone", removed=True))
    assert its.keys[0, 0] == key_of("item", "gone") and not its.alive[0]


def test_an_item_that_was_never_published_is_added_once() -> None:
    its = Catalogue(FEATURES)
    assert its.ensure("new") == its.ensure("new") == 0 and its.alive[0]
    its.apply(item("new", removed=True))
    assert its.ensure("new") == 0 and not its.alive[0]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (3, np.log(4)), (-3, -np.log(4)), (True, np.log(2)), ("3", 0), (None, 0), ([3], 0),
        (float("nan"), 0), (float("inf"), 0), (10**400, 0), (1e300, 0),
        (float(np.finfo(np.float32).max), np.log(np.finfo(np.float32).max)),
    ],
)  # fmt: skip
def test_numbers_are_logarithms_and_0_where_there_is_none(value: object, number: float) -> None:
    its = Catalogue(FEATURES)
    its.apply(item("a", price=value))
    assert its.numbers[0, 0] == pytest.approx(number)


@pytest.mark.parametrize(
    ("value", "vector"),
    [
        ([1, -2.5, 3], [1, -2.5, 3]), ([1, 2], [0, 0, 0]), ("abc", [0, 0, 0]), (None, [0, 0, 0]),
        ([1, "2", None], [1, 0, 0]), ([1, float("nan"), 1e300], [1, 0, 0]),
        ([60, 80, 0], [60, 80, 0]), ([0, -1e20, 0], [0, -100, 0]), ([300, 0, -400], [60, 0, -80]),
    ],
)  # fmt: skip
def test_vectors_stand_as_they_are_but_no_longer_than_100_or_not_at_all(
    value: object, vector: list[float]
) -> None:
    its = Catalogue(FEATURES)
    its.apply(item("a", embedding=value))
    assert its.numbers[0, 1:].tolist() == vector


@settings(max_examples=50, deadline=None)
@given(fields=st.dictionaries(names, anything, max_size=7))
def test_no_value_of_a_field_breaks_the_columns(fields: dict[str, Any]) -> None:
    its = Catalogue(FEATURES)
    its.apply(item("a", **fields))
    assert np.isfinite(its.numbers).all()
