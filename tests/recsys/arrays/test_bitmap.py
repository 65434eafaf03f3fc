import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.arrays.bitmap import Bitmap

INDICES = st.integers(0, 69)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 30),
    changes=st.lists(
        st.one_of(
            st.tuples(st.just("put"), INDICES, st.booleans()),
            st.tuples(st.just("take"), st.lists(INDICES, max_size=20), st.booleans()),
        ),
        max_size=30,
    ),
)
def test_it_is_a_set_of_indices(size: int, changes: list[tuple]) -> None:
    bitmap, members = Bitmap(size), set[int]()
    for what, value, there in changes:
        size = max(size, 1 + max([value] if what == "put" else value, default=-1))
        bitmap.grow(size)
        if what == "put":
            bitmap.put(value, there)
            members = members | {value} if there else members - {value}
        else:
            found = bitmap.take(np.array(value, np.int64))
            assert found.tolist() == [index for index in dict.fromkeys(value) if index in members]
            if there:
                bitmap.give_back(found)
            else:
                members -= set(value)
        assert bitmap.count == len(members) and len(bitmap) == size
    everything = np.arange(size)
    for its in (bitmap, bitmap.copy(), Bitmap.of(bitmap.mask())):
        assert np.flatnonzero(its.mask()).tolist() == sorted(members) and its.count == len(members)
        assert everything[its[everything]].tolist() == sorted(members)
        assert [index for index in range(size) if its[index]] == sorted(members)
        assert len(its.mask()) == size and int(np.unpackbits(its.bits).sum()) == len(members)


@given(of=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_two_sets_make_a_third(of: list[tuple[bool, bool]]) -> None:
    one, other = np.array(of, np.bool_).reshape(-1, 2).T
    for name, expected in (("intersect", one & other), ("subtract", one & ~other), ("unite", one | other)):
        bitmap, second = Bitmap.of(one), Bitmap.of(other)
        cleared = getattr(bitmap, name)(second)
        assert bitmap.mask().tolist() == expected.tolist() and bitmap.count == expected.sum()
        assert cleared is None or cleared == one.sum() - expected.sum()
        assert second.mask().tolist() == other.tolist()
        assert int(np.unpackbits(bitmap.bits).sum()) == bitmap.count


def test_a_copy_goes_its_own_way() -> None:
    bitmap = Bitmap.of(np.ones(20, np.bool_))
    copy = bitmap.copy()
    copy.take(np.array([3, 3, 19]))
    assert (copy.count, bitmap.count) == (18, 20) and not copy[19] and bitmap[19]


def test_the_first_are_found_wherever_they_begin() -> None:
    mask = np.zeros(5_000, np.bool_)
    mask[[700, 701, 4_999]] = True
    bitmap = Bitmap.of(mask)
    assert bitmap.first(2).tolist() == [700, 701]
    assert bitmap.first(9).tolist() == [700, 701, 4_999]
    assert bitmap.first(0).tolist() == Bitmap().first(3).tolist() == []


@pytest.mark.parametrize("beyond", [-1, 24, 10**9])
def test_what_is_beyond_its_memory_is_refused_and_nothing_is_changed(beyond: int) -> None:
    bitmap, indices = Bitmap.of(np.ones(20, np.bool_)), np.array([3, beyond])
    for act in (bitmap.take, bitmap.give_back, bitmap.__getitem__):
        with pytest.raises(IndexError, match="expected 0 to 19"):
            act(indices)
    assert bitmap.count == 20 and bitmap.mask().all() and bitmap[np.int64(3)]
