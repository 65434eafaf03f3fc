"""What users did by arm: before and since, by days, with users that cross, leave or are too many."""

from typing import Any

import numpy as np
import pytest

from experiments.assignment.design import metric_of, sums_of
from experiments.statistics.outcomes import DAY_MS, NOBODY, UserOutcomes

LABELS = ("long_view", "hide")
LONG, PER_USER = metric_of("long_view", LABELS), metric_of("shown_per_user", LABELS)
SUMS = sums_of([LONG, PER_USER])  # long_view, shown


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def expose(its: UserOutcomes, user: int, arm: int, time_ms: int = 1_000, segment: int = 0) -> None:
    its.expose(ints(user), ints(arm), ints(time_ms), ints(segment))


def show(its: UserOutcomes, user: int, arm: int, shown_ms: int, long: float, shown: float = 1) -> None:
    its.add(ints(user), ints(arm), ints(shown_ms), np.array([[long, shown]]))


def made() -> UserOutcomes:
    return UserOutcomes(("control", "treatment"), SUMS)


def test_names_become_ratios_of_sums() -> None:
    assert SUMS == ("long_view", "shown")
    assert (LONG.numerator, LONG.denominator, LONG.higher_is_better) == ("long_view", "shown", True)
    assert not metric_of("hide", LABELS).higher_is_better
    assert metric_of("watch_s_per_user", LABELS).denominator == "user"
    assert sums_of([metric_of("watch_s", LABELS)]) == ("shown", "watch_s")
    for name in ("like", "shown", "user", ""):
        with pytest.raises(ValueError, match=f"metric is '{name}'"):
            metric_of(name, LABELS)


def test_what_was_before_exposure_is_a_covariate_and_what_is_since_counts() -> None:
    its = made()
    show(its, 7, NOBODY, 500, 1, 3)
    expose(its, 7, 1)
    show(its, 7, NOBODY, 900, 0, 2)  # closed late: served before the arm was given
    show(its, 7, 1, 1_200, 1, 4)
    users = its.users(LONG, 1)
    assert users.numerators_U.tolist() == [1] and users.denominators_U.tolist() == [4]
    assert users.covariates_UK.tolist() == [[1, 5, 1]]
    assert len(its.users(LONG, 0)) == 0 and its.counts() == [0, 1] and its.shown(1) == 4


def test_the_exposed_count_who_were_shown_nothing() -> None:
    its = made()
    expose(its, 1, 0)
    expose(its, 2, 0)
    show(its, 1, 0, 2_000, 0, 6)
    assert its.users(PER_USER, 0).ratio == 3
    assert its.users(LONG, 0).denominators_U.tolist() == [6, 0]


def test_what_is_shown_after_the_traffic_ended_counts_for_nobody_and_is_told() -> None:
    its = made()
    expose(its, 1, 0)
    show(its, 1, NOBODY, 5_000, 1)
    assert its.outside == 1 and its.shown(0) == 0


def test_who_was_given_two_arms_is_counted_once_and_left_out() -> None:
    its = made()
    for arm in (0, 1, 0, 1):
        expose(its, 1, arm)
    expose(its, 2, 0)
    assert its.crossed == 1 and len(its.users(LONG, 0)) == 1 and its.counts() == [2, 0]
    show(its, 1, 1, 2_000, 1)  # under the second arm
    assert its.outside == 1


def test_days_are_since_exposure_or_since_a_time() -> None:
    its = made()
    expose(its, 1, 0, DAY_MS // 2)
    for day in (0, 1, 30):
        show(its, 1, 0, DAY_MS // 2 + day * DAY_MS, day == 1)
    by_day = [its.users(LONG, 0, day=day).denominators_U.sum() for day in range(its.days)]
    assert by_day == [1, 1, 0, 0, 0, 0, 0, 1]
    assert its.users(LONG, 0, day=1).numerators_U.tolist() == [1]
    above, below = its.daily(LONG, 0)
    assert below.tolist() == [[1, 2, 2, 2, 2, 2, 2, 3]] and above[0, :2].tolist() == [0, 1]
    all_alike = UserOutcomes(("all",), SUMS, days=3, since_ms=0)
    expose(all_alike, 1, 0, DAY_MS // 2)
    show(all_alike, 1, 0, DAY_MS + 1, 0)
    assert all_alike.daily(LONG, 0)[1].tolist() == [[0, 1, 1]]


def test_of_each_user_a_day_counts_once_it_is_over() -> None:
    its = made()
    expose(its, 1, 0, 0)
    expose(its, 2, 0, DAY_MS)
    assert len(its.users(PER_USER, 0, day=1, until_ms=2 * DAY_MS)) == 1
    assert len(its.users(PER_USER, 0, day=0, until_ms=2 * DAY_MS)) == 2


def test_segments_and_who_is_new() -> None:
    its = made()
    show(its, 1, NOBODY, 1, 0)
    expose(its, 1, 0, segment=0)
    expose(its, 2, 0, segment=1)
    assert its.segments() == [0, 1]
    assert len(its.users(LONG, 0, segment=1)) == 1
    assert len(its.users(LONG, 0, new=True)) == len(its.users(LONG, 0, new=False)) == 1


def test_a_correction_takes_back() -> None:
    its = made()
    expose(its, 1, 1)
    show(its, 1, 1, 2_000, 1, 1)
    show(its, 1, 1, 2_000, -1, 0)
    assert its.users(LONG, 1).numerators_U.tolist() == [0]


def test_beyond_the_most_users_half_leave_by_a_hash_and_the_rest_keep_what_they_did() -> None:
    few = UserOutcomes(("control", "treatment"), SUMS, most_users=1_000)
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5_000)
    arms = np.arange(5_000) % 2
    for start in range(0, 5_000, 500):
        cut = slice(start, start + 500)
        few.expose(keys[cut], arms[cut], np.full(500, 9), np.zeros(500, np.int64))
        few.add(keys[cut], arms[cut], np.full(500, 10), np.tile([1.0, 2.0], (500, 1)))
    assert few.sampled == 0.125 and 500 < len(few) <= 1_000
    held = [len(few.users(LONG, arm)) for arm in (0, 1)]
    assert sum(held) == len(few) and abs(held[0] - held[1]) < 100
    assert few.counts() == [2_500, 2_500]  # of all
    for arm in (0, 1):
        assert set(few.users(LONG, arm).numerators_U) == {1.0}
    assert sum(array.nbytes for array in few._arrays.values()) < 1_000 * 1_000


def test_half_may_leave_in_the_middle_of_a_call() -> None:
    few = UserOutcomes(("all",), SUMS, most_users=100)
    keys = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 150)
    few.add(keys, np.full(150, NOBODY), np.zeros(150, np.int64), np.tile([1.0, 2.0], (150, 1)))
    few.expose(keys, np.zeros(150, np.int64), np.ones(150, np.int64), np.zeros(150, np.int64))
    assert few.sampled < 1 and (few.users(LONG, 0).covariates_UK == [1, 2, 1]).all()


def test_arrays_grow_past_their_first_room() -> None:
    its = made()
    users = np.arange(3_000)
    its.expose(users, users % 2, np.full(3_000, 5), np.zeros(3_000, np.int64))
    assert its.counts() == [1_500, 1_500]
