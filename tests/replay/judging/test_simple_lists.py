"""Simple lists for retrieval against slow definitions, and items whose order is obvious."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.judging.neighbour_lists import ItemKnn, SessionKnn
from replay.judging.simple_lists import HOUR_MS, OwnItems, Popularity, Transitions

# (user, item, minutes after the one before)
LOG = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 50)), max_size=40)


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


def test_of_equal_items_that_of_the_newer_session_is_first():
    near = SessionKnn(0.5)
    for user, items in (("b", (1, 4)), ("c", (1, 9)), ("d", (1, 2)), ("a", (1,))):
        for item in items:
            near.learn(user, item, 0)
    items, scores = near.scores("a", 1)
    assert items.tolist() == [1, 2, 9, 4] and scores.tolist() == [3, 1, 1, 1]


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


def test_transitions_count_what_a_user_takes_next():
    chain = Transitions()
    for user, items in (("a", (1, 2, 3)), ("b", (1, 2)), ("c", (1, 4)), ("d", (1,))):
        for item in items:
            chain.learn(user, item, 0)
    assert best(chain, "d", 0) == {2: 2.0, 4: 1.0} and best(chain, "b", 0) == {3: 1.0}
    assert best(chain, "a", 0) == best(chain, "nobody", 0) == {}


@given(LOG)
def test_sessions_are_as_near_as_by_their_definition(log):
    """Against sets of the sessions' items, of all other sessions."""
    near, sessions, own = SessionKnn(0.5), [], {}
    for user, item, now_ms in timed(log):
        near.learn(user, item, now_ms)
        number, last_ms = own.get(user, (None, 0))
        if number is None or now_ms - last_ms > 1_800_000:
            number = len(sessions)
            sessions.append([])
        sessions[number] = [*(i for i in sessions[number] if i != item), item]
        own[user] = number, now_ms
    slow = defaultdict(float)
    if "a" in own:
        newest = sessions[own["a"][0]][::-1]
        weights = {item: 1 - n / len(newest) for n, item in enumerate(newest)}
        for number, items in enumerate(sessions):
            for item in items if number != own["a"][0] else ():
                slow[item] += sum(weights.get(i, 0) for i in items)
    assert best(near, "a", 0) == pytest.approx({i: s for i, s in slow.items() if s})


def test_the_oldest_sessions_are_forgotten():
    near = SessionKnn(0.5, sessions=4)
    near.learn("old", 1, 0)
    near.learn("old", 7, 0)
    for n in range(3):
        near.learn(f"u{n}", 1, n)
        near.learn(f"u{n}", 2 + n, n)
    assert set(best(near, "u2", 3)) == {1, 2, 3, 7}
    near.learn("new", 1, 4)
    assert set(best(near, "new", 5)) == {1, 2, 3, 4}
    assert best(near, "old", 5) == {} and near._of_item.keys() == {1, 2, 3, 4}
    near.learn("old", 9, 6)  # begins anew
    near.learn("old", 1, 7)
    assert set(best(near, "old", 8)) == {1, 3, 4}


def test_state_stays_within_its_bounds():
    sessions = SessionKnn(0.5, sessions=50)
    for n in range(3_000):
        sessions.learn(f"u{n % 700}", n % 900, n * HOUR_MS)
    assert len(sessions._rows) == len(sessions._owners) == 50 and len(sessions._own) <= 50
    assert sum(map(len, sessions._of_item.values())) == 50


def test_names_say_the_half_life():
    names = [Popularity(hours).name for hours in (1, 24, 168, 720)]
    assert names == [f"popularity, {time}" for time in ("1 h", "24 h", "7 d", "30 d")]


@given(LOG)
def test_own_items_are_in_the_order_of_their_counts(log):
    own, times = OwnItems(), defaultdict(list)
    for user, item, now_ms in timed(log):
        own.learn(user, item, now_ms)
        times[user].append(item)
    for user in "abc":
        items, scores = own.scores(user, 0)
        order = np.argsort(-scores, kind="stable")
        newest = times[user][::-1]
        slow = sorted(set(newest), key=lambda item: (-newest.count(item), newest.index(item)))
        assert items[order].tolist() == slow
