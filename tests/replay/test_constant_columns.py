"""Columns of one value in a whole log."""

import numpy as np

from recsys.features.families.declared import Declared
from recsys.features.feature_set import FeatureSet
from replay.constant_columns import ConstantColumns
from tests.support.training.small_feed import FEATURES

WIDTH = len(FEATURES.dense_names)


def rows(seed: int, items: int, width: int = WIDTH) -> np.ndarray:
    dense = np.random.default_rng(seed).normal(0, 1, (items, width)).astype(np.float32)
    dense[:, 3] = 0.5
    return dense


def test_a_column_is_named_that_has_one_value_in_all_lists() -> None:
    its = ConstantColumns(FEATURES)
    its.add(rows(0, 0))
    for seed in range(500):
        its.add(rows(seed, 2))
    assert its.names == [FEATURES.dense_names[3]]
    other = rows(1, 1)
    other[0, 3] = 0.25
    its.add(other)
    assert its.names == []


def test_nothing_is_said_of_few_items() -> None:
    its = ConstantColumns(FEATURES)
    its.add(rows(0, 999))
    assert its.names == []
    its.add(rows(0, 1))
    assert len(its.names) == 1


def test_columns_of_a_list_are_not_followed() -> None:
    whole = FeatureSet(FEATURES.schema, kind="all", declared=Declared(whole_list=True))
    its = ConstantColumns(whole)
    its.add(np.zeros((1_000, len(whole.dense_names)), np.float32))
    assert its.names == list(whole.dense_names[: -whole.list_columns])
