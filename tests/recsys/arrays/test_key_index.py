import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.arrays.key_index import LOAD, cells_for, empty_index, find, home_of, insert, place_of, spread
from recsys.events.hashing import cross
from recsys.features.feature_kernels import crossed

ids = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.lists(ids, max_size=40), max_size=8), others=st.lists(ids, max_size=20))
def test_every_key_keeps_the_place_that_it_got_first(batches, others) -> None:  # type: ignore[no-untyped-def]
    expected: dict[int, int] = {}
    index, placed, count = empty_index(8), np.zeros(400, np.int64), 0
    for batch in batches:
        while cells_for(count + len(batch)) > len(index):
            wider = empty_index(len(index) * 5 // 4)
            spread(index, wider)
            index = wider
        places = np.empty(len(batch), np.int64)
        count = int(insert(index, placed, count, np.array(batch, np.int64), places))
        for key, place in zip(batch, places.tolist(), strict=True):
            assert place == expected.setdefault(key, len(expected))
    assert count == len(expected) and placed[:count].tolist() == list(expected)
    asked = [*expected, *others]
    places = np.empty(len(asked), np.int64)
    find(index, np.array(asked, np.int64), places)
    assert places.tolist() == [expected.get(key, -1) for key in asked]
    assert [place_of(index, key) for key in asked] == places.tolist()


def test_an_index_has_an_empty_cell_at_any_load() -> None:
    for keys in range(200):
        assert cells_for(keys) > keys and keys <= LOAD * cells_for(keys)


def test_pairs_have_the_same_keys_compiled_and_not() -> None:
    draw = np.random.default_rng(0)
    right = np.concatenate([[0, 1, -1], draw.integers(-(2**62), 2**62, 50)])
    for left in (7, -(2**61), 0):
        assert [crossed(left, key) for key in right.tolist()] == cross(left, right).tolist()


def test_homes_are_spread_over_all_cells() -> None:
    homes = {int(home_of(np.int64(key), np.uint64(64))) for key in range(2_000)}
    assert homes == set(range(64))
