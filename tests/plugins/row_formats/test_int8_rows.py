"""Rows as int8: each published row comes back bit for bit, and what isn't one is kept whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.publish.rounding import round_rows
from plugins.row_formats.int8_rows import Int8Rows
from recsys.config.system_config import TableConfig
from recsys.events.hashing import uniforms
from serving.replica.row_store import RowStore

HUGE = float(np.finfo(np.float32).max)
sizes = st.floats(0, HUGE, width=32) | st.floats(0, 1, width=32)


def table(dim: int) -> TableConfig:
    return TableConfig("features", dim, 0.1, initial=0.5)


def same(left: np.ndarray, right: np.ndarray) -> bool:
    return left.tobytes() == right.tobytes()


@settings(max_examples=60, deadline=None)
@given(size=sizes, dim=st.integers(1, 33), seed=st.integers(0, 2**32))
def test_a_published_row_comes_back_bit_for_bit(size: float, dim: int, seed: int) -> None:
    keys = np.arange(40)
    rows = ((uniforms(seed, keys, dim) * 2 - 1) * size).astype(np.float32)
    published, store = round_rows(rows, "int8").rows, Int8Rows(table(dim), 7)
    store.set(keys, published)
    assert store.float_rows == 0 and len(store) == 40
    assert same(store.lookup(keys), published)


def test_scales_that_division_misses_are_found() -> None:
    """Of some scales the quotient of the largest component is a neighbour: without trying it too, such a row
    would be kept whole."""
    scales = np.float32(1.5) + np.arange(4096, dtype=np.float32) * np.float32(2**-23)
    codes = np.array([127, -126, 125, 3], np.float32)
    rows = codes * scales[:, None]
    missed = np.abs(rows).max(1) / np.float32(127) != scales
    assert missed.any()
    store = Int8Rows(table(4), 7)
    store.set(np.arange(4096), rows)
    assert store.float_rows == 0 and same(store.lookup(np.arange(4096)), rows)


@pytest.mark.parametrize(
    "row", [[0.1, 1.0, 0.0], [-0.0, 127.0, 1.0], [np.nan, 1.0, 0.0], [np.inf, 1.0, 0.0]]
)
def test_what_int8_does_not_hold_is_kept_whole_until_it_changes(row: list[float]) -> None:
    store, odd, key = Int8Rows(table(3), 7), np.array([row], np.float32), np.array([5])
    store.set(key, odd)
    assert store.float_rows == len(store) == 1 and same(store.lookup(key), odd)
    plain = np.array([[127.0, 0.0, -1.0]], np.float32)
    for rows, whole in ((plain, 0), (odd, 1), (plain, 0)):
        store.set(key, rows)
        assert (store.float_rows, len(store)) == (whole, 1) and same(store.lookup(key), rows)
    store.remove(key)
    assert len(store) == 0 == store.digest


@pytest.mark.parametrize(("dim", "share"), [(17, 0.33), (32, 0.3)])
def test_it_takes_a_third_of_the_bytes_of_the_rows(dim: int, share: float) -> None:
    keys = np.arange(20_000) * 11
    rows = round_rows((uniforms(3, keys, dim) - 0.5).astype(np.float32), "int8").rows
    ours, theirs = (kind.filled(table(dim), 7, keys, rows) for kind in (Int8Rows, RowStore))
    assert ours.digest == theirs.digest and ours.float_rows == 0
    maps = ours._codes_of.nbytes
    assert (ours.nbytes - maps) < share * (theirs.nbytes - maps)
