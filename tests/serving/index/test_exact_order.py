"""Order of hits: by value, of equals by position or by key."""

import numpy as np
import pytest

from serving.index.exact_order import errors_of, exact_best, largest


@pytest.mark.parametrize("k", [0, 1, 3, 6, 9])
def test_the_largest_come_in_order_and_of_equals_the_first(k: int) -> None:
    values = np.array([-0.0, 2.5, -1e-40, 0.0, 2.5, -np.inf, -3.0, np.inf], np.float32)
    assert largest(values, k).tolist() == [7, 1, 4, 0, 3, 2, 6, 5][:k]


def test_of_equals_the_smaller_key_comes_first() -> None:
    values = np.array([1.0, 2.0, 2.0, 1.0], np.float32)
    assert largest(values, 3, np.array([4, 9, 2**40, 1])).tolist() == [1, 2, 3]


ROWS = np.array([[1.0, 0.0], [-0.0, 1.0], [0.0, 2.0], [np.nan, 0.0]], np.float32)


def best(hits: list[int], k: int) -> tuple[list[int], bytes]:
    """The best of hits that are there already, for a query whose products are 1, -0, 0 and NaN."""
    query, errors = np.array([1.0, -0.0], np.float32), errors_of(np.full(2, 2.0, np.float32))
    fetched = np.array(hits, np.int64)
    indices, products = exact_best(
        lambda size: fetched, lambda: np.arange(4), ROWS, query, k, 4, errors, fetched
    )
    return indices.tolist(), products.tobytes()


def test_a_product_of_minus_zero_is_zero() -> None:
    assert best([0, 2, 1, 3], 3) == ([0, 1, 2], np.array([1, 0, 0], np.float32).tobytes())


@pytest.mark.parametrize("hits", [[0, 2, 1], [0, 2, 1, 3, 3]])
def test_another_number_of_hits_than_there_is_room_for_is_refused(hits: list[int]) -> None:
    with pytest.raises(AssertionError, match=f"got {len(hits)} hits, expected 4"):
        best(hits, 3)
