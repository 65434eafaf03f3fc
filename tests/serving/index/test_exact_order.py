"""Order of hits: by value, of equals by position or by key."""

import numpy as np
import pytest

from serving.index.exact_order import largest


@pytest.mark.parametrize("k", [0, 1, 3, 6, 9])
def test_the_largest_come_in_order_and_of_equals_the_first(k: int) -> None:
    values = np.array([-0.0, 2.5, -1e-40, 0.0, 2.5, -np.inf, -3.0, np.inf], np.float32)
    assert largest(values, k).tolist() == [7, 1, 4, 0, 3, 2, 6, 5][:k]


def test_of_equals_the_smaller_key_comes_first() -> None:
    values = np.array([1.0, 2.0, 2.0, 1.0], np.float32)
    assert largest(values, 3, np.array([4, 9, 2**40, 1])).tolist() == [1, 2, 3]
