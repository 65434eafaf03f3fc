"""Simple lists for retrieval against slow definitions, and items whose order is obvious."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.judging.neighbour_lists import ItemKnn, SessionKnn
from replay.judging.simple_lists import HOUR_MS, Popularity

# (user, item, minutes after the one before)
LOG = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 50)), max_size=40
)


def timed(log):
    now_ms = 0
    for user, item, minutes in log:
        now_ms += minutes * 60_000
        yield user, item, now_ms


def best(baseline, user, now_ms):
    items, scores = baseline.scores(user, now_ms)
    assert len(set(items.tolist())) == len(items)
    return dict(zip(items.tolist(), scores.tolist(), strict=True))


@given(LOG)
def test_a_count_halves_with_each_half_life(log):
    popular, times = Popularity(6), defaultdict(list)
    for user, item, now_ms in timed(log):
        popular.learn(user, item, now_ms)
        times[item].append(now_ms)
    later_ms = max((t for own in times.values() for t in own), default=0) + HOUR_MS
    slow = {
        item: np.log2(sum(0.5 ** ((later_ms - t) / (6 * HOUR_MS)) for t in own))
        for item, own in times.items()
    }
    assert best(popular, "a", later_ms) == pytest.approx(slow)


def test_an_old_favourite_falls_behind_within_days_but_stays_in_order():
    popular = Popularity(1)
    for item, times in ((0, 5), (1, 3), (2000, 1)):
        for _ in range(times):
            popular.learn("a", item, 0)
    popular.learn("a", 2000, 400 * HOUR_MS)
    scores = best(popular, "a", 10_000 * HOUR_MS)
    assert sorted(scores, key=scores.get, reverse=True) == [2000, 0, 1]


@given(LOG)
def test_items_are_as_near_as_their_users_are_the_same(log):
    near, users = ItemKnn(), defaultdict(set)
    for user, item, now_ms in timed(log):
        near.learn(user, item, now_ms)
        users[item].add(user)
    own = {item for item in users if "a" in users[item]}
    slow = {
        other: sum(
            len(users[other] & users[item]) / (len(users[other]) * len(users[item])) ** 0.5
            for item in own - {other}
        )
        for other in users
    }
    assert best(near, "a", 0) == pytest.approx({i: s for i, s in slow.items() if s})


def test_sessions_that_share_the_newest_items_count_most():
    near = SessionKnn(0.5)
    for user, items in (("b", (1, 2, 7)), ("c", (3, 8)), ("d", (9, 5)), ("a", (3, 1, 2))):
        for minute, item in enumerate(items):
            near.learn(user, item, minute * 60_000)
    scores = best(near, "a", 4 * 60_000)
    assert scores[7] > scores[8] > 0 and 9 not in scores
    assert best(near, "nobody", 0) == {}


def test_a_pause_begins_a_session():
    near = SessionKnn(0.5)
    for user, items in (("b", (1, 7)), ("c", (2, 8))):
        for item in items:
            near.learn(user, item, 0)
    near.learn("a", 1, 0)
    near.learn("a", 2, 31 * 60_000)
    assert set(best(near, "a", 32 * 60_000)) == {2, 8}
    near = SessionKnn(24)
    for user, item, hour in (("b", 1, 0), ("b", 7, 23), ("c", 1, 0), ("c", 8, 25), ("a", 1, 26)):
        near.learn(user, item, hour * HOUR_MS)
    assert set(best(near, "a", 27 * HOUR_MS)) == {1, 7}
