import numpy as np
import pytest

from experiments.evidence.verdict import EngagementRates
from experiments.statistics.significance import ClusteredMean


def test_engagement_rates_have_bounds_from_ten_users_on_and_share_alpha() -> None:
    draw = np.random.default_rng(0)
    rates, means = EngagementRates(("like", "hide"), 0.08, 500), []
    for canary in (True, False):
        labels = (draw.random((400, 2)) < 0.3).astype(np.float64)
        users, ranked = np.arange(400) % 9, np.arange(400) >= 100
        group = np.full(400, canary)
        rates.add(users, group, labels, ranked, np.ones(400))
        assert rates.result().gained["like"].low == -np.inf
        rates.add(np.array([9]), group[:1], np.ones((1, 2)), ranked[-1:], np.ones(1))
        mean = ClusteredMean(0.08 / 8, 500, at_least=10)
        mean.add(np.append(users, 9), np.append(labels[:, 0], 1.0))
        means.append(mean.estimate())
    result, (ours, live) = rates.result(), means
    assert (result.examples, result.live_examples, result.users, result.live_users) == (401, 401, 10, 10)
    assert result.degraded == result.live_degraded == pytest.approx(100 / 401)
    like = result.gained["like"]
    assert like.mean == pytest.approx(ours.mean - live.mean)
    assert like.low == pytest.approx(ours.low - live.high) and like.weight == 401
    assert like.high == pytest.approx(ours.high - live.low)
