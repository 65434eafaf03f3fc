"""Users by arm: each once, by the first, however many there are."""

import numpy as np
import pytest

from experiments.statistics import outcomes as exposed
from experiments.statistics.outcomes import NOBODY, ExposureCounts, UserOutcomes, in_sample
from experiments.statistics.sample_ratio import sample_ratio


def keys_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count)


def test_each_user_counts_once_for_the_first_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposed, "_BUFFER", 50)
    its, first = ExposureCounts(3), dict[int, int]()
    draw = np.random.default_rng(1)
    users = keys_of(400)
    for _ in range(60):
        some, arms = draw.choice(users, 30), draw.integers(0, 3, 30)
        for user, arm in zip(some.tolist(), arms.tolist(), strict=True):
            first.setdefault(user, arm)
        its.add(some, arms)
        assert its.counts() == [list(first.values()).count(arm) for arm in range(3)]
    assert len(first) > 390 and its.sampled == 1


def test_beyond_the_most_a_share_by_hash_is_counted() -> None:
    its, users = ExposureCounts(2, most=1_000), keys_of(5_000)
    for _ in range(2):  # whoever left doesn't come back
        for start in range(0, 5_000, 500):
            some = users[start : start + 500]
            its.add(some, some % 2)
    left = users[in_sample(users, its.sampled)]
    assert its.sampled == 0.125 and its.counts() == np.bincount(left % 2).tolist()
    assert its._keys_U.nbytes + its._arms_U.nbytes < 1_000 * 100


def test_a_leak_is_seen_though_outcomes_are_of_a_share() -> None:
    """Of 40,000 users 1,000 are held; the ratio is that of all, as the study of leaks counts them."""
    its = UserOutcomes(("control", "treatment"), ("shown",), most_users=1_000)
    users = keys_of(40_000)
    arms = (np.random.default_rng(2).random(40_000) < 0.475).astype(np.int64)  # of 0.5
    zeros = np.zeros(1_000, np.int64)
    for start in range(0, 40_000, 1_000):
        cut = slice(start, start + 1_000)
        its.expose(users[cut], arms[cut], zeros, zeros)
        its.add(users[cut], np.full(1_000, NOBODY), zeros, np.ones((1_000, 1)))
    assert its.sampled < 0.05 and its.counts() == np.bincount(arms).tolist()
    assert sample_ratio(its.counts(), (0.5, 0.5)).alarm
