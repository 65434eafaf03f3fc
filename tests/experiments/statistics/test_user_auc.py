"""Pairs of one user's examples, held against a loop over all of them."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.statistics.user_auc import UserAuc

KEPT = 3


def one_by_one(batches: list[tuple], slots: int) -> list[tuple[int, float]]:
    """The same, an example at a time: an earlier batch's examples are what it is held against."""
    kept: dict[int, dict[int, list]] = defaultdict(lambda: {0: [], 1: []})
    owner: dict[int, int] = {}
    found = []
    for users, live, candidate, labels in batches:
        for u, a, b, y in zip(users, live, candidate, labels, strict=True):
            others = kept[u][1 - int(y)][-KEPT:] if owner.get(u % slots) == u else []
            right = [
                [(np.sign(mine - its[m]) * (1 if y else -1) + 1) / 2 for m, mine in ((0, a), (1, b))]
                for its in others
            ]
            if right:
                found.append((u, float(np.mean([r[1] - r[0] for r in right]))))
        takes = {u % slots: u for u in users}
        for slot, u in takes.items():
            if owner.get(slot) != u:
                kept[u], owner[slot] = {0: [], 1: []}, u
        for u, a, b, y in zip(users, live, candidate, labels, strict=True):
            if owner[u % slots] == u:
                kept[u][int(y)].append((a, b))
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 5, 64]))
def test_it_is_what_a_loop_gives(seed: int, slots: int) -> None:
    draw, its, batches, found = np.random.default_rng(seed), UserAuc(KEPT, slots), [], []
    for _ in range(6):
        size = int(draw.integers(0, 12))
        batches.append((
            draw.integers(0, 6, size), draw.integers(0, 4, size) / 4, draw.integers(0, 4, size) / 4,
            draw.integers(0, 2, size).astype(float),
        ))  # fmt: skip
        users, gains = its.add(*batches[-1])
        found += list(zip(users.tolist(), gains.tolist(), strict=True))
    expected = one_by_one([tuple(column.tolist() for column in batch) for batch in batches], slots)
    assert [user for user, _ in found] == [user for user, _ in expected]
    assert [gain for _, gain in found] == pytest.approx([gain for _, gain in expected])


def test_who_orders_each_users_items_right_gains_though_all_users_have_one_mean() -> None:
    draw, its, gains = np.random.default_rng(0), UserAuc(), []
    for _ in range(50):
        users, taste = draw.integers(0, 20, 64), draw.normal(size=64)
        labels = (draw.random(64) < 1 / (1 + np.exp(-2 * taste))).astype(float)
        live = np.full(64, 0.5)
        gains.append(its.add(users, live, 1 / (1 + np.exp(-2 * taste)), labels)[1])
    assert 0.2 < np.concatenate(gains).mean() < 0.5


def test_who_only_knows_the_users_gains_nothing() -> None:
    draw, its, gains = np.random.default_rng(0), UserAuc(), []
    for _ in range(50):
        users = draw.integers(0, 20, 64)
        labels = (draw.random(64) < 0.1 + users / 25).astype(float)
        gains.append(its.add(users, np.full(64, 0.5), users / 20, labels)[1])
    assert np.concatenate(gains).any() is np.False_


def test_few_users_need_little_and_all_slots_no_more_than_there_are() -> None:
    few, many, draw = UserAuc(), UserAuc(), np.random.default_rng(0)
    for its, users in ((few, 300), (many, 100_000)):
        for _ in range(40):
            half = draw.random(4_096)
            its.add(draw.integers(0, users, 4_096), half, half, (half > 0.5).astype(float))
    sizes = [sum(a.nbytes for a in (its._row, its._scores, its._seen)) for its in (few, many)]
    assert sizes[0] < 1 << 18 and 1 << 21 < sizes[1] < 5 << 19
