"""Panels: which are kept and told of, and what is left of them."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.forgetting.panels import (
    AGES,
    MOST,
    PREVIOUS,
    ROW,
    SPACING,
    Floats,
    Panel,
    pack,
    reported,
    retention,
    thinned,
    unpack,
)

DAY_MS = AGES["1d"]


def panel(labels: list[float], learned: Floats, **more: object) -> Panel:
    rows = np.zeros(len(labels), ROW)
    rows["offset"] = rows["impression"] = np.arange(len(labels))
    rows["label"], rows["weight"], rows["learned"] = labels, 1.0, learned
    rows["served"] = np.linspace(0.2, 0.4, len(labels))
    for name, values in more.items():
        rows[name] = values
    return Panel(0, 100, 1_000, rows)


LABELS = [float(n % 3 == 0) for n in range(400)]
KNOWN = np.array(LABELS, np.float32) * 0.5 + 0.2  # who knows every label
BLANK = np.full(400, 0.3, np.float32)  # who knows none


def test_a_model_that_forgets_shows_it_and_one_that_keeps_shows_none() -> None:
    forgets = retention(panel(LABELS, KNOWN), BLANK, 61_000)
    keeps = retention(panel(LABELS, KNOWN), KNOWN, 61_000)
    assert forgets is not None and keeps is not None
    assert (forgets.learned, forgets.now, forgets.forgotten) == (1.0, 0.5, 0.5)
    assert (keeps.forgotten, keeps.age_ms, keeps.examples) == (0.0, 60_000, 400)
    assert 0.45 < keeps.before < 0.55
    helped = retention(panel(LABELS, BLANK), KNOWN, 0)
    assert helped is not None and helped.forgotten == -0.5


def test_nothing_is_said_of_few_of_one_kind_or_of_what_nobody_served() -> None:
    assert retention(panel(LABELS[:150], KNOWN[:150]), KNOWN[:150], 0) is None
    assert retention(panel([1.0] * 400, KNOWN), KNOWN, 0) is None
    unsaid = retention(panel(LABELS, KNOWN, served=np.nan), KNOWN, 0)
    assert unsaid is not None and math.isnan(unsaid.before) and unsaid.forgotten == 0.0


def test_a_negative_that_stands_for_ten_weighs_as_ten() -> None:
    labels, scores = [1.0, 0.0, 0.0, 1.0] * 100, np.array([0.9, 0.5, 0.8, 0.7] * 100, np.float32)
    weight = [1.0, 10.0, 1.0, 1.0] * 100
    its = retention(panel(labels, scores, weight=weight), scores, 0)
    assert its is not None and its.now == pytest.approx((11 + 10) / 22)


def test_a_corrected_label_counts_for_all_three() -> None:
    late = panel([0.0, *LABELS[1:]], KNOWN)
    wrong = retention(late, KNOWN, 0)
    right = retention(late.corrected({(0, 0, 0): [1.0], (0, 999, 0): [1.0]}), KNOWN, 0)
    assert wrong is not None and right is not None
    assert wrong.learned < 1.0 == right.learned == right.now
    assert late.corrected({(1, 0, 0): [1.0]}) is late


def test_a_negative_that_stood_for_others_weighs_1_once_a_label_of_it_is_true() -> None:
    late = panel([0.0] * 400, KNOWN, weight=10.0)
    now = late.corrected({(0, 0, 0): [1.0, 0.0], (0, 1, 0): [0.0, 1.0], (0, 2, 0): [0.0, 0.0]})
    assert now.rows_N["label"][:4].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert now.rows_N["weight"][:4].tolist() == [1.0, 1.0, 10.0, 10.0]
    assert late.rows_N["weight"].tolist() == [10.0] * 400


def test_places_that_are_gone_leave_and_the_others_stay_as_they_were() -> None:
    there = np.arange(400) % 7 != 0
    left = panel(LABELS, KNOWN).only(there)
    assert left.rows_N["offset"].tolist() == np.flatnonzero(there).tolist()
    again = unpack(pack([left]))
    assert len(again) == 1 and again[0].step == 100
    assert again[0].rows_N.tobytes() == left.rows_N.tobytes()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1_000, 4 * 3_600_000), min_size=1, max_size=250))
def test_panels_are_few_their_ages_ascend_and_every_age_has_a_near_one(gaps: list[int]) -> None:
    """However snapshots come: after each one, what is kept was kept before."""
    ages: list[int] = []
    for gap in gaps:
        ages = [0, *(age + gap for age in ages)]
        stay = thinned(ages)
        assert stay[0] == 0 and stay == sorted(set(stay)) and len(stay) <= MOST
        ages = [ages[n] for n in stay]
        assert ages == sorted(ages)
        assert sum(age >= DAY_MS for age in ages) <= 1
        assert all(c / a > SPACING for a, c in zip(ages[1:], ages[3:], strict=False))
        assert all(0 < n < len(ages) for n in reported(ages).values())


@pytest.mark.parametrize("every_s", [60, 125])
def test_at_a_steady_pace_each_age_is_told_by_a_panel_within_a_factor_of_two(every_s: int) -> None:
    ages: list[int] = []
    for n in range(1, 130_000 // every_s):
        ages = [0, *(age + 1_000 * every_s for age in ages)]
        ages = [ages[n] for n in thinned(ages)]
        for name, age_ms in AGES.items():
            if 1_000 * n * every_s > 1.5 * age_ms:
                assert 0.5 <= ages[reported(ages)[name]] / age_ms <= 2, (name, ages)
    assert reported(ages)[PREVIOUS] == 1 and ages[-1] >= DAY_MS
