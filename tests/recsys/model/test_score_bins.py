"""Bins of probabilities: they add up, and the AUC from them is near the exact one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.model.prediction_metrics import BINS, auc, auc_of, bin_weights, bins_of

Floats = np.ndarray


def arrays(counts: dict[int, float]) -> Floats:
    return np.array([counts.get(n, 0.0) for n in range(BINS)])


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.5])
def test_the_auc_of_bins_is_that_of_scores(strength: float) -> None:
    draws = np.random.default_rng(3)
    logits = strength * draws.normal(size=20_000) - 0.7
    p = 1 / (1 + np.exp(-logits))
    happened = (draws.random(20_000) < p).astype(float)
    bins = bins_of(p)
    found = auc_of(arrays(bin_weights(bins, np.ones(20_000))), arrays(bin_weights(bins, happened)))
    assert abs(found - auc(p, happened)) < 0.002


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60), st.integers(0, 59))
def test_bins_of_two_parts_are_those_of_both(rows: list[tuple[float, bool]], cut: int) -> None:
    p = np.array([row[0] for row in rows])
    happened = np.array([float(row[1]) for row in rows])
    whole = arrays(bin_weights(bins_of(p), happened))
    parts = [
        arrays(bin_weights(bins_of(part), h))
        for part, h in ((p[:cut], happened[:cut]), (p[cut:], happened[cut:]))
    ]
    assert np.array_equal(whole, parts[0] + parts[1])
    assert whole.sum() == happened.sum() and (np.diff(bins_of(np.sort(p))) >= 0).all()


def test_without_one_kind_nothing_is_said_and_ties_count_half() -> None:
    ones = arrays({5: 4.0})
    assert math.isnan(auc_of(ones, ones)) and math.isnan(auc_of(ones, 0 * ones))
    assert auc_of(ones, arrays({5: 1.0})) == 0.5
    assert auc_of(arrays({5: 2.0, 9: 1.0}), arrays({9: 1.0})) == 1.0
