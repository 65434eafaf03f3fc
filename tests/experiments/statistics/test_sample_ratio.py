"""The sample-ratio test: exact by hand, silent where shares hold however often one looks, loud where not."""

import math

import numpy as np
import pytest
from scipy.special import betaln

from experiments.statistics.sample_ratio import ALPHA, log_bayes_factor, sample_ratio

SHARES = (0.5, 0.3, 0.2)


def test_of_two_arms_it_is_the_beta_binomial() -> None:
    counts, share, k = (70, 50), 0.6, 10.0
    expected = betaln(k * share + 70, k * 0.4 + 50) - betaln(k * share, k * 0.4)
    expected -= 70 * math.log(share) + 50 * math.log(0.4)
    assert log_bayes_factor(counts, (share, 0.4), k) == pytest.approx(expected)


def test_it_is_a_fair_bet() -> None:
    """Its mean under the shares is 1, over all ways in which six users may fall."""
    mean = sum(
        math.comb(6, n) * 0.3**n * 0.7 ** (6 - n) * math.exp(log_bayes_factor((n, 6 - n), (0.3, 0.7), 5))
        for n in range(7)
    )
    assert mean == pytest.approx(1)


def test_nobody_yet_is_no_alarm() -> None:
    assert sample_ratio((0, 0, 0), SHARES).p == 1


def test_shares_that_hold_raise_no_alarm_in_a_thousand_runs_of_a_hundred_looks() -> None:
    draw, alarms = np.random.default_rng(0), 0
    for _ in range(1_000):
        counts = draw.multinomial(2_000, SHARES, size=100).cumsum(0)
        alarms += any(sample_ratio(row, SHARES).alarm for row in counts.tolist())
    assert alarms <= 5  # of α 0.001 one is expected at most


def test_one_percent_that_moves_raises_it_soon_and_for_good() -> None:
    draw = np.random.default_rng(1)
    counts = draw.multinomial(10_000, (0.505, 0.495), size=60).cumsum(0).tolist()
    p, first = 1.0, None
    for look, row in enumerate(counts):
        its = sample_ratio(row, (0.5, 0.5), p)
        assert its.p <= p
        p = its.p
        first = look if first is None and its.alarm else first
    assert first is not None and 10_000 * (first + 1) < 500_000
    assert sample_ratio((10, 10), (0.5, 0.5), p).alarm and p < ALPHA


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.0, 0.0), (1.0,)])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="whose sum is 1"):
        sample_ratio((1, 1), shares)
