"""The choice model: its derivatives, what it learns, and what it is asked."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from parameter_server.table.dense import Dense
from parameter_server.table.newton import sums_size
from recsys.features.families.declared import Declared
from recsys.model.choice_model import (
    UNIT,
    choice_rows,
    choice_size,
    choice_sums,
    log_odds,
    reads_ranker,
    utilities,
)
from tests.support.training.small_feed import FEATURES

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
F = len(FEATURES.dense_names)
CLICKS = replace(FEATURES, schema=replace(FEATURES.schema, shown_by="click"))
W = choice_size(FEATURES)


def rows_of(draw: np.random.Generator, rows: int = 6, scale: float = 0.5) -> Floats:
    """A choice: the taken item, and others that stand for one to nine candidates."""
    rows_RC = draw.normal(0, scale, (rows, 1 + F)).astype(np.float32)
    rows_RC[:, 0] = np.log(draw.integers(1, 10, rows))
    rows_RC[0, 0] = 0.0
    return rows_RC


def inputs_of(rows_RC: Floats) -> Doubles:
    """The inputs that have weights (R, W)."""
    dense = rows_RC[:, 1:].astype(np.float64)
    events = np.maximum(dense[:, FEATURES.dense_names.index("events")], 0)
    for_new = dense[:, FEATURES.impersonal] * np.exp(-5 * events)[:, None]
    return np.column_stack([dense[:, FEATURES.differing], for_new])


def loss(weights_W: Doubles, choices: list[Floats]) -> float:
    """-log P of the taken items, row by row."""
    total = 0.0
    for choice in choices:
        utility_R = inputs_of(choice) @ weights_W + choice[:, 0]
        total += np.log(np.exp(utility_R).sum()) - utility_R[0]
    return total


def test_the_sums_are_the_derivatives_of_the_log_likelihood() -> None:
    draw = np.random.default_rng(0)
    choices = [rows_of(draw) for _ in range(4)]
    weights = draw.normal(0, 0.3, W).astype(np.float32)
    sums = choice_sums(weights, choices, np.ones(4, np.float32), FEATURES) / UNIT
    gradient, curvature, count = sums[:W], np.zeros((W, W)), sums[-1]
    curvature[np.triu_indices(W)] = sums[W:-1]
    assert count == 4 and len(sums) == W + sums_size(W)
    at, step = weights.astype(np.float64), 1e-4
    for place in range(0, W, 7):
        away = np.eye(W)[place] * step
        slope = (loss(at + away, choices) - loss(at - away, choices)) / (2 * step)
        assert gradient[place] == pytest.approx(slope, abs=2e-3)
        bend = (loss(at + away, choices) - 2 * loss(at, choices) + loss(at - away, choices)) / step**2
        assert curvature[place, place] == pytest.approx(bend, abs=2e-2)


def test_a_choice_counts_by_its_weight() -> None:
    draw = np.random.default_rng(1)
    choices, weights = [rows_of(draw), rows_of(draw)], np.zeros(W, np.float32)
    both = choice_sums(weights, choices, np.array([1, 0], np.float32), FEATURES)
    first = choice_sums(weights, choices[:1], np.ones(1, np.float32), FEATURES)
    assert np.array_equal(both, first) and both.any()


def test_a_hundred_choices_teach_what_people_take() -> None:
    """One column decides; all others are noise. The taken item is drawn by its utility."""
    draw, wanted = np.random.default_rng(2), np.zeros(W)
    wanted[5] = 2.0
    dense = Dense(np.zeros(3 + W, np.float32), 0.001)
    for _ in range(25):
        choices = []
        for _ in range(8):
            rows_RC = draw.normal(0, 1, (9, 1 + F)).astype(np.float32)
            rows_RC[:, 0] = 0.0
            rows_RC[:, 1 + FEATURES.dense_names.index("events")] = 2.0  # none is new
            utility = inputs_of(rows_RC) @ wanted
            taken = int(np.argmax(utility + draw.gumbel(size=9)))
            rows_RC[[0, taken]] = rows_RC[[taken, 0]]
            choices.append(rows_RC)
        sums = choice_sums(dense.values[3:], choices, np.ones(8, np.float32), FEATURES)
        assert dense.apply(np.concatenate([np.zeros(3, np.float32), sums]))
    learned = dense.values[3:]
    assert learned[5] == pytest.approx(2.0, abs=0.5)
    assert np.abs(np.delete(learned, 5)).max() < 0.6
    assert np.array_equal(dense.averaged[3:], learned)  # served as they are


def test_new_viewers_have_their_own_weights_of_what_others_take() -> None:
    """Items that others take are passed by where co-visits tell more, and taken where nothing is known."""
    at, column = FEATURES.impersonal[2], FEATURES.dense_names.index("events")
    dense_NF = np.zeros((2, F), np.float32)
    dense_NF[0, at] = 1.0
    weights, odds = np.zeros(W, np.float32), np.zeros(2, np.float32)
    weights[FEATURES.differing.index(at)] = -1.0
    weights[len(FEATURES.differing) + 2] = 3.0
    for events, wanted in ((0, 2.0), (1, 0.5), (1e6, -1.0)):
        dense_NF[:, column] = np.log1p(events) / 5
        found = utilities(weights, dense_NF, odds, FEATURES)
        assert found.tolist() == pytest.approx([wanted, 0.0], abs=1e-4)


def test_a_row_that_stands_for_many_candidates_counts_as_many() -> None:
    draw = np.random.default_rng(3)
    rows_RC = rows_of(draw, 2)
    rows_RC[1, 0] = np.log(3.0)
    thrice = np.concatenate([rows_RC[:1], np.repeat(rows_RC[1:], 3, 0)])
    thrice[:, 0] = 0.0
    weights, one = draw.normal(0, 0.3, W).astype(np.float32), np.ones(1, np.float32)
    by_weight = choice_sums(weights, [rows_RC], one, FEATURES)
    by_rows = choice_sums(weights, [thrice], one, FEATURES)
    np.testing.assert_allclose(by_weight, by_rows, atol=1e-6)


def test_a_utility_does_not_depend_on_the_other_candidates() -> None:
    draw = np.random.default_rng(4)
    weights, dense = draw.normal(0, 1, W).astype(np.float32), draw.normal(0, 1, (300, F))
    dense_NF = dense.astype(np.float32)
    odds_N = draw.normal(0, 1, 300).astype(np.float32)
    together = utilities(weights, dense_NF, odds_N, FEATURES)
    for at in (0, 7, 299):
        own = slice(at, at + 1)
        assert utilities(weights, dense_NF[own], odds_N[own], FEATURES)[0] == together[at]


def test_rows_of_another_width_or_without_a_number_are_no_choice() -> None:
    rows = rows_of(np.random.default_rng(5))
    assert np.array_equal(choice_rows(rows.tobytes(), FEATURES), rows)  # type: ignore[arg-type]
    assert choice_rows(rows.tobytes()[:-4], FEATURES) is None
    rows[1, 6] = np.inf
    assert choice_rows(rows.tobytes(), FEATURES) is None


def test_features_of_keys_alone_have_no_choice_model() -> None:
    for features in (replace(FEATURES, kind="ids"), replace(CLICKS, kind="ids")):
        nothing = np.zeros(0, np.float32)
        assert choice_size(features) == 0 == len(choice_sums(nothing, [], nothing, features))


def test_where_a_log_has_clicks_alone_the_rankers_log_odds_are_the_last_input() -> None:
    draw, weights = np.random.default_rng(6), np.zeros(W + 2, np.float32)
    assert reads_ranker(CLICKS) and not reads_ranker(FEATURES) and choice_size(CLICKS) == W + 2
    dense_NF, odds_N = np.zeros((3, F), np.float32), np.array([-1, 0, 2], np.float32)
    weights[-1] = 0.5
    assert utilities(weights, dense_NF, odds_N, CLICKS).tolist() == [-0.5, 0.0, 1.0]
    rows_RC = np.column_stack([rows_of(draw, 2), np.array([1, -1], np.float32)])
    rows_RC[:, :-1] = 0.0
    sums = choice_sums(weights, [rows_RC], np.ones(1, np.float32), CLICKS) / UNIT
    passed_by = 1 / (1 + np.exp(1))  # P of the other one, two log odds below, at a weight of a half
    assert sums[W + 1] == pytest.approx(-2 * passed_by, rel=1e-4) and not sums[:W].any()
    assert sums[W] == sums[W + 1]  # of a new viewer
    weights[-2:] = 0.0, 1.0
    dense_NF[:, FEATURES.dense_names.index("events")] = 2.0  # 22,000 events
    assert utilities(weights, dense_NF, odds_N, CLICKS).tolist() == [-1.0, 0.0, 2.0]
    weights[-2:] = 1.0, 0.0
    assert np.abs(utilities(weights, dense_NF, odds_N, CLICKS)).max() < 1e-3


def test_columns_of_a_list_are_no_inputs() -> None:
    whole = replace(FEATURES, declared=Declared(whole_list=True, near=True))
    names = [whole.dense_names[column] for column in whole.differing]
    assert "item.near" in names and not [name for name in names if name.startswith("list.")]
    assert choice_size(whole) == choice_size(replace(FEATURES, declared=Declared(near=True)))


def test_log_odds_are_bounded() -> None:
    odds = log_odds(np.array([0.0, 0.5, 1.0, np.nan], np.float32))
    assert odds.tolist() == pytest.approx([-10.0, 0.0, 10.0, 0.0], abs=0.02)
