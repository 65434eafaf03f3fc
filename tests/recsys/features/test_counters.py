import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.counters import HALF_LIVES_MS, CounterTable, amounts

KINDS = ("shown", "long_view", "watch")
FAST, SLOW = (int(h) for h in HALF_LIVES_MS)
ONE = np.array([1.0, 0.0, 0.0], np.float32)

additions = st.lists(
    st.tuples(st.integers(1, 4), st.floats(0, 10, width=32), st.integers(0, 3 * SLOW)),
    min_size=1,
    max_size=25,
)


def counters() -> CounterTable:
    return CounterTable(len(KINDS), capacity=1)


def read(its: CounterTable, key: int, now_ms: int) -> np.ndarray:
    """(speeds, kinds) of one key."""
    return its.read(np.array([key]), now_ms).reshape(2, len(KINDS))


@pytest.mark.parametrize(("speed", "half_life_ms"), [(0, FAST), (1, SLOW)])
def test_a_count_halves_with_each_half_life_of_event_time(speed: int, half_life_ms: int) -> None:
    its = counters()
    its.add([7], ONE, 1_000)
    for halvings in range(4):
        value = read(its, 7, 1_000 + halvings * half_life_ms)[speed, 0]
        assert value == pytest.approx(0.5**halvings, rel=1e-6)


def test_half_lives_are_six_hours_and_two_weeks() -> None:
    assert (FAST, SLOW) == (21_600_000, 1_209_600_000)
    its = counters()
    its.add([7], ONE, 5)
    assert read(its, 7, 5 + 21_600_000)[0, 0] == pytest.approx(0.5, abs=1e-6)
    assert read(its, 7, 5 + 1_209_600_000)[1, 0] == pytest.approx(0.5, abs=1e-6)


def test_what_comes_late_counts_as_if_it_had_come_in_time() -> None:
    late, in_time = counters(), counters()
    late.add([7], ONE, FAST)
    late.add([7], ONE, 0)
    in_time.add([7], ONE, 0)
    in_time.add([7], ONE, FAST)
    np.testing.assert_allclose(read(late, 7, FAST), read(in_time, 7, FAST), rtol=1e-6)
    assert read(late, 7, FAST)[0, 0] == pytest.approx(1.5)
    assert late.export()[2].tolist() == [FAST]  # a late event doesn't turn the row's time back


def test_reading_before_the_last_event_does_not_make_counts_grow() -> None:
    its = counters()
    its.add([7], ONE, SLOW)
    assert (read(its, 7, 0)[:, 0] == 1.0).all()


@settings(max_examples=40, deadline=None)
@given(events=additions, seed=st.randoms(use_true_random=False))
def test_the_order_of_additions_changes_only_last_bits(events: list, seed) -> None:  # type: ignore[type-arg, no-untyped-def]
    shuffled = list(events)
    seed.shuffle(shuffled)
    totals = []
    for order in (events, shuffled):
        its = counters()
        for key, amount, at_ms in order:
            its.add([key], ONE * np.float32(amount), at_ms)
        totals.append(its.read(np.arange(1, 5), 4 * SLOW))
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-4, atol=1e-6)


def test_unknown_keys_and_the_empty_place_read_as_zeros() -> None:
    its = counters()
    assert not its.read(np.array([[0, 5], [6, 0]]), 9).any()
    its.add([5], ONE, 0)
    found = its.read(np.array([[0, 5], [-6, 5]]), 0)
    assert found.shape == (2, 2, 2 * len(KINDS))
    assert found[:, 1].any() and not found[:, 0].any()
    assert its.read(np.empty(0, np.int64), 0).shape == (0, 2 * len(KINDS))


@settings(max_examples=40, deadline=None)
@given(events=additions)
def test_what_is_exported_can_be_set_elsewhere_once_or_twice(events: list) -> None:  # type: ignore[type-arg]
    its, other = counters(), counters()
    for key, amount, at_ms in events:
        its.add([key, -key], ONE * np.float32(amount), at_ms)
    for _ in range(2):
        other.set(*its.export())
    keys = np.array([-4, -3, -2, -1, 0, 1, 2, 3, 4])
    assert its.read(keys, SLOW).tobytes() == other.read(keys, SLOW).tobytes()
    assert len(other) == len(its)


def test_an_export_of_chosen_keys_leaves_the_unknown_out() -> None:
    its = counters()
    its.add([1, 2, 3], ONE, 5)
    assert its.export([3, 9, 1])[0].tolist() == [3, 1]
    keys, values, last_ms = its.export([9])
    assert len(keys) == len(values) == len(last_ms) == 0


def test_the_rows_longest_untouched_leave() -> None:
    its = counters()
    for key in range(1, 41):
        its.add([key], ONE, 1_000 * key)
    its.add([3], ONE, 99_000)  # an old row touched again stays
    kept = its.read(np.arange(1, 41), 99_000)
    assert len(its.keep_newest(10)) == 30 and len(its) == 10
    expected = {3, *range(32, 41)}
    assert set(its.export()[0].tolist()) == expected
    after = its.read(np.arange(1, 41), 99_000)
    for key in range(1, 41):
        same = kept[key - 1] if key in expected else np.zeros_like(kept[0])
        assert after[key - 1].tobytes() == same.tobytes()
    assert len(its.keep_newest(10)) == 0
    its.add([77], ONE, 100_000)  # and there is room for new ones
    assert read(its, 77, 100_000)[0, 0] == 1.0


def test_no_keys_add_nothing() -> None:
    its = counters()
    its.add([], ONE, 5)
    assert len(its) == 0


def test_what_one_event_adds() -> None:
    assert amounts(KINDS, "shown").tolist() == [1, 0, 0]
    assert amounts(KINDS, "long_view", 9_000).tolist() == [0, 1, 0]  # a view brings the watch time
    assert amounts(KINDS, "view", 9_000)[2] == pytest.approx(np.log(10))
    assert not amounts(KINDS, "skip", 9_000).any()


@pytest.mark.parametrize("shown", [3e6, 4e8])
def test_a_frequent_row_counts_and_decays_as_an_exact_one(shown: float) -> None:
    """float32 rounds the decay of 40 ms to 1, and adds no 1 to more than 2**24."""
    table, now_ms, key = CounterTable(2), 1_790_000_000_000, np.array([5])
    true = np.array([7e5, 7e5 / 33, shown, shown / 33]).astype(np.float32).astype(np.float64)
    table.set(key, true.astype(np.float32)[None], np.array([now_ms]))
    left = np.repeat(np.exp2(-40 / table.half_lives_ms), 2)
    for n in range(20_000):
        now_ms += 40
        added = np.array([1, n % 33 == 0], np.float32)
        table.add([5], added, now_ms)
        true = true * left + np.tile(added, 2)
    change = 20_000 * np.tile([1, 1 / 33], 2) + true * (1 - left) * 20_000
    assert (abs(table.read(key, now_ms)[0] - true) < 0.05 * change + 2).all()
    np.testing.assert_allclose(table.read(key, now_ms)[0], true, rtol=2e-5)


def test_what_is_taken_back_from_a_frequent_row_is_taken_off_exactly() -> None:
    table, key = CounterTable(1), np.array([5])
    table.set(key, np.array([[2e5, 2e6]], np.float32), np.array([1_000]))
    table.add([5], np.array([7], np.float32), 1_000)
    table.add([5], np.array([-7], np.float32), 1_000)
    assert table.read(key, 1_000)[0].tolist() == [2e5, 2e6]
