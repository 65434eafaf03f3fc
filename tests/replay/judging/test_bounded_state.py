"""Containers with a limit, against slow definitions, and what they forget."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from replay.judging.bounded_state import ByItem, NewestItems, PairCounts

ROWS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 6)), max_size=60)


@given(ROWS, st.integers(1, 4), st.integers(4, 12))
def test_the_newest_items_of_recent_users_are_there(rows, each, limit):
    newest, slow = NewestItems(each, limit), {}
    for user, item in rows:
        before = slow.pop(user, [])
        assert newest.add(user, item) == (item not in before)
        slow[user] = [*(i for i in before if i != item), item][-each:]
        while sum(map(len, slow.values())) > limit:
            del slow[next(iter(slow))]
    assert newest.lists() == list(slow.values()) and len(newest) == sum(map(len, slow.values()))
    assert all(newest.of(user) == slow.get(user, []) for user in "abcd")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=80))
def test_pairs_within_the_limit_are_counted_exactly(pairs):
    counts, slow = PairCounts(25), Counter(pairs)
    for pair in pairs:
        counts.add(*pair)
    for first in range(6):
        seconds, numbers = counts.of(first)
        fast = {(first, second): n for second, n in zip(seconds.tolist(), numbers.tolist(), strict=True)}
        assert fast == {pair: n for pair, n in slow.items() if pair[0] == first}
    assert len(counts) == len(slow)


def test_beyond_the_limit_the_pairs_counted_least_go():
    counts = PairCounts(100)
    for n in range(10_000):
        counts.add(0, 1 + n % 20)  # often
        counts.add(1 + n, n)  # once
        assert len(counts) <= 100
    seconds, numbers = counts.of(0)
    assert sorted(seconds.tolist()) == list(range(1, 21)) and set(numbers.tolist()) == {500}


def test_a_number_by_item_grows_with_the_highest_index():
    numbers = ByItem(-1.0)
    numbers[5_000] = 3.0
    assert (numbers[5_000], numbers[4_999], numbers[9_999_999]) == (3.0, -1.0, -1.0)
    assert 5_001 <= len(numbers.values) <= 10_002
