"""Merging of sources against the rule in plain Python."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.sources.merging import Merging

Found = list[tuple[int, list[int]]]  # share and items of each source


def by_rule(found: Found, limit: int, most: int) -> dict[int, int]:
    """Each source's share first, and then what is left of them."""
    sources, left = dict[int, int](), list[tuple[int, list[int]]]()
    for place, (share, items) in enumerate(found):
        once = list(dict.fromkeys(items))
        for index in once[:share]:
            if index in sources or len(sources) < limit:
                sources[index] = sources.get(index, 0) | 1 << place
        left.append((1 << place, once[share:]))
    for bit, items in left:
        for index in items:
            if index not in sources and len(sources) < min(limit, most):
                sources[index] = bit
    return sources


SOURCES = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 20), max_size=25)), max_size=5)


@given(st.lists(SOURCES, min_size=1, max_size=3), st.integers(0, 25), st.integers(0, 30))
def test_merges_as_the_rule_says_and_keeps_nothing_for_the_next(
    requests: list[Found], limit: int, most: int
) -> None:
    merge = Merging()
    for found in requests:
        items = [np.array(each, np.int64) for _, each in found]
        shares = [share for share, _ in found]
        merged = merge(items, shares, range(len(found)), limit, most, 21)
        assert dict(zip(*(part.tolist() for part in merged), strict=True)) == by_rule(found, limit, most)
        assert [*merged[0].tolist()] == [*by_rule(found, limit, most)]


def test_places_of_sources_are_bits_also_where_some_failed() -> None:
    indices, sources = Merging()([np.array([3, 4]), np.array([4])], [2, 1], [1, 5], 9, 9, 5)
    assert indices.tolist() == [3, 4] and sources.tolist() == [2, 2 | 32]
