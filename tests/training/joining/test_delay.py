"""The share of labels that has come by the time of the example, from what came later."""

import msgspec
import numpy as np
import pytest

from training.joining.delay import SLICES, DelayState, LabelDelays

WINDOW_S, HORIZON_S = 10.0, 310.0  # a slice is ten seconds
WIDTH_MS = 10_000


def counted(
    rates: list[int], *, mean_s: float = 60.0, labels: int = 1, seed: int = 0, window_s: float = WINDOW_S
) -> LabelDelays:
    """``rates[n]``: labels that become true of the impressions of second n, after exponential delays. Those
    within the window are in the first example, those within the horizon in corrections."""
    whole_s = WINDOW_S + HORIZON_S
    draw, its = np.random.default_rng(seed), LabelDelays(labels, window_s, whole_s - window_s)
    events = []
    for second, rate in enumerate(rates):
        for delay_s in draw.exponential(mean_s, rate):
            if delay_s <= window_s:
                events.append((second * 1000 + int(window_s * 1000), second * 1000, False))
            elif delay_s <= whole_s:
                events.append((int((second + delay_s) * 1000), second * 1000, True))
    for now_ms, shown_ms, late in sorted(events):
        if now_ms > len(rates) * 1000:
            break
        its.advance(now_ms)
        if late:
            its.later(shown_ms, 1, 1, now_ms)
        else:
            its.first(shown_ms, 1, 1)
    return its


TRUE = (1 - np.exp(-10 / 60)) / (1 - np.exp(-320 / 60))


def test_it_learns_the_share_that_comes_early() -> None:
    its = counted([20] * 1500)
    assert its.arrived(1) == [pytest.approx(TRUE, rel=0.05)]
    assert its.late_labels(1) == 1 and its.arrived(0) == [] and its.late_labels(0) == 0


@pytest.mark.parametrize("slices", [3, 5.5, 16])
def test_it_learns_it_where_the_window_is_many_slices_long(slices: float) -> None:
    window_s = slices * WIDTH_MS / 1000
    true = (1 - np.exp(-window_s / 120)) / (1 - np.exp(-320 / 120))
    assert counted([20] * 1500, mean_s=120.0, window_s=window_s).arrived(1) == [pytest.approx(true, rel=0.05)]


def test_where_traffic_grows_the_young_dont_count_for_what_they_cant_have() -> None:
    """Four times as many in each horizon: of all labels that are there, many more came early."""
    its = counted([int(2 * 4 ** (second / 320)) for second in range(1000)])
    assert its.arrived(1) == [pytest.approx(TRUE, rel=0.08)]


def test_it_says_nothing_before_the_first_horizon_is_over() -> None:
    assert counted([20] * 320).arrived(1) == [] != counted([20] * 345).arrived(1)


def test_it_follows_a_drift_of_the_delay() -> None:
    fast = counted([20] * 1500, mean_s=5.0)
    assert fast.arrived(1)[0] == pytest.approx(1 - np.exp(-2), rel=0.02)
    before = fast.arrived(1)[0]
    draw = np.random.default_rng(1)
    start = 1_500_000
    late = []
    for n in range(40_000):
        shown_ms = start + n * 100
        delay_s = float(draw.exponential(60.0))
        if delay_s <= WINDOW_S:
            late.append((shown_ms + 10_000, shown_ms, False))
        elif delay_s <= WINDOW_S + HORIZON_S:
            late.append((shown_ms + int(delay_s * 1000), shown_ms, True))
    for now_ms, shown_ms, correction in sorted(late):
        fast.advance(now_ms)
        (fast.later(shown_ms, 1, 1, now_ms) if correction else fast.first(shown_ms, 1, 1))
    assert TRUE < fast.arrived(1)[0] < TRUE + 0.1 * (before - TRUE)


def test_few_labels_nearly_all_and_nearly_none_are_taken_for_all() -> None:
    assert counted([1] * 150).arrived(1) == []
    assert counted([20] * 1000, mean_s=1.0).arrived(1) == []
    assert counted([200] * 700, mean_s=3_000.0).arrived(1) != []  # a tenth of 320 s all the same
    its = LabelDelays(1, WINDOW_S, HORIZON_S)
    for second in range(1000):
        its.advance(second * 1000)
        its.first(second * 1000, 1, 1 if second % 10 == 0 else 0)
        for _ in range(30):
            its.later(second * 1000, 1, 1, second * 1000 + 200_000)
    assert its.arrived(1) == []


def test_labels_and_ways_of_ending_are_apart() -> None:
    its = LabelDelays(3, WINDOW_S, HORIZON_S)
    for second in range(900):
        its.advance(second * 1000)
        its.first(second * 1000, 0, 0b011)
        its.later(second * 1000, 0, 0b010, second * 1000)
        its.first(second * 1000, 1, 0b100)
        its.later(second * 1000, 1, 0b100, second * 1000 + 300_000)
        its.later(second * 1000, 1, 0b100, second * 1000 + 300_000)
    assert its.arrived(0) == [1.0, pytest.approx(1 / 2, rel=0.02), 1.0]
    assert its.arrived(1) == [1.0, 1.0, pytest.approx(1 / 3, rel=0.02)]
    assert (its.late_labels(0), its.late_labels(1)) == (0b010, 0b100)


def test_a_silence_of_any_length_leaves_nothing_behind() -> None:
    step, leap = counted([20] * 400), counted([20] * 400)
    for slices in range(41, 41 + 3 * SLICES):
        step.advance(slices * WIDTH_MS)
    leap.advance((40 + 3 * SLICES) * WIDTH_MS)
    assert leap.state.cohorts == step.state.cohorts == {}
    np.testing.assert_allclose(leap.state.through, step.state.through, rtol=1e-9)
    leap.advance(10**15)
    assert leap.arrived(1) == [] and leap.state.slice == 10**15 // WIDTH_MS
    leap.first(5_000, 1, 1)
    assert leap.state.cohorts == {}, "too old"


def test_a_state_of_other_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="other labels"):
        LabelDelays(2, 1.0, 1.0).restore(LabelDelays(3, 1.0, 1.0).state)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_with_another_horizon_it_begins_anew(factor: float) -> None:
    before = counted([20] * 600)
    after = LabelDelays(1, WINDOW_S, factor * (WINDOW_S + HORIZON_S) - WINDOW_S)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(before.state), type=DelayState)
    after.restore(stored)
    assert after.arrived(1) == (before.arrived(1) if factor == 1.0 else [])
    for second in range(600, 1800):
        after.advance(second * 1000)
        after.first(second * 1000, 1, 1)
        after.later(second * 1000, 1, 1, second * 1000 + 20_000)
    assert after.state.slice == 1_799_000 // int(factor * WIDTH_MS)
    if factor != 1.0:
        assert after.arrived(1) == [pytest.approx(0.5, rel=0.02)]
