from dataclasses import replace

import numpy as np
import pytest

from experiments.promotion.promotion import (
    CANARY,
    SHADOW,
    CanaryEngagement,
    EngagementRates,
    Evidence,
    Hold,
    Promote,
    Rollback,
    judge,
)
from experiments.statistics.comparison import ComparisonResult
from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from recsys.config.promotion_config import PromotionConfig

RULES = PromotionConfig()
BETTER = ComparisonResult(
    examples=5_000,
    users=400,
    loss=AnytimeEstimate(0.004, 0.001, 0.007, 5_000),
    auc=AnytimeEstimate(0.006, 0.001, 0.011, 5_000),
    live_loss=0.6,
    live_calibration=1.01,
    candidate_calibration=0.99,
)
SAME = replace(
    BETTER, loss=AnytimeEstimate(0.0, -0.001, 0.001, 5_000), auc=AnytimeEstimate(0.0, -0.001, 0.001)
)


def test_better_and_no_worse_elsewhere_goes_to_a_canary() -> None:
    said = judge(Evidence(SHADOW, BETTER), RULES)
    assert isinstance(said, Promote) and said.to == "canary" and said.evidence.compared is BETTER


@pytest.mark.parametrize(
    "compared, why",
    [
        (replace(BETTER, examples=1_999), "1999 examples compared, expected 2000"),
        (SAME, "no significant difference yet"),
        (replace(BETTER, auc=AnytimeEstimate(0.0, -0.01, 0.01)), "no worse in the other"),
        (replace(BETTER, loss=AnytimeEstimate(0.0, -0.01, 0.01)), "no worse in the other"),
        (replace(BETTER, candidate_calibration=1.5), "calibration is 1.500, live's 1.010"),
        (replace(BETTER, candidate_calibration=float("nan")), "calibration is nan"),
    ],
)
def test_what_is_not_sure_is_held_and_looked_at_again(compared: ComparisonResult, why: str) -> None:
    said = judge(Evidence(SHADOW, compared), RULES)
    assert isinstance(said, Hold) and not said.final
    assert why in said.why


def test_a_miscalibrated_candidate_may_replace_a_worse_calibrated_line() -> None:
    compared = replace(BETTER, candidate_calibration=1.3, live_calibration=1.5)
    assert isinstance(judge(Evidence(SHADOW, compared), RULES), Promote)


BAD = [
    (Evidence(SHADOW, failed=("3 of its scores aren't finite",)), "aren't finite"),
    (Evidence(SHADOW, replace(SAME, loss=AnytimeEstimate(-0.1, -0.2, -0.01))), "log loss is worse"),
    (Evidence(SHADOW, replace(SAME, auc=AnytimeEstimate(-0.1, -0.2, -0.01))), "AUC is worse"),
    (
        Evidence(SHADOW, replace(BETTER, recall=AnytimeEstimate(-0.1, -0.2, -0.03))),
        "retrieves less of what viewers engage with",
    ),
    (
        Evidence(SHADOW, replace(BETTER, segments={"new viewers": AnytimeEstimate(-0.1, -0.2, -0.02)})),
        "worse in new viewers",
    ),
]


@pytest.mark.parametrize("evidence, why", BAD)
def test_what_is_bad_is_given_up_in_shadow_and_rolled_back_as_canary(evidence: Evidence, why: str) -> None:
    held = judge(evidence, RULES)
    assert isinstance(held, Hold) and held.final and why in held.why
    back = judge(replace(evidence, stage=CANARY), RULES)
    assert isinstance(back, Rollback) and why in back.why


def test_one_that_cannot_be_told_apart_is_given_up_in_the_end() -> None:
    said = judge(Evidence(SHADOW, replace(SAME, examples=RULES.most_examples)), RULES)
    assert isinstance(said, Hold) and said.final and "no difference after" in said.why


def test_a_canary_goes_on_once_it_was_shown_often_enough() -> None:
    few = Evidence(CANARY, BETTER, served=CanaryEngagement(RULES.canary_examples - 1))
    assert isinstance(judge(few, RULES), Hold)
    enough = replace(few, served=CanaryEngagement(RULES.canary_examples))
    said = judge(enough, RULES)
    assert isinstance(said, Promote) and said.to == "all"
    lists = CanaryEngagement(RULES.canary_examples, 900, degraded=0.12, live_degraded=0.1)
    overloaded = judge(replace(few, served=lists), RULES)  # which live's lists show as well
    assert isinstance(overloaded, Promote)


@pytest.mark.parametrize(
    "served, why",
    [
        (CanaryEngagement(100, 900, {"like": AnytimeEstimate(-0.1, -0.15, -0.04)}), "fewer like"),
        (CanaryEngagement(100, 900, {"hide": AnytimeEstimate(0.1, 0.04, 0.15)}), "more hide"),
        (CanaryEngagement(100, 900, degraded=0.2, users=10), "20.0% of its lists went without its"),
        (CanaryEngagement(RULES.canary_examples, 900, degraded=0.2, users=9), "went without its ranker"),
    ],
)
def test_a_guardrail_takes_a_canary_back(served: CanaryEngagement, why: str) -> None:
    said = judge(Evidence(CANARY, BETTER, served=served), RULES)
    assert isinstance(said, Rollback) and why in said.why


def test_first_lists_without_a_ranker_do_not_take_a_canary_back() -> None:
    served = CanaryEngagement(100, 900, degraded=1.0, users=9)
    assert isinstance(judge(Evidence(CANARY, BETTER, served=served), RULES), Hold)


@pytest.mark.parametrize(
    "name, value", [("share", 0.0), ("alpha", 0.5), ("canary_share", 1.5), ("latency", 0.5)]
)
def test_rules_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"promotion.{name} is {value}, expected"):
        replace(RULES, **{name: value})


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


def test_fewer_of_an_unwanted_label_are_no_breach_and_more_are() -> None:
    draw = np.random.default_rng(0)
    for canary_rate, breach in ((0.1, ""), (0.5, "viewers give more refund: gained +0.")):
        rates = EngagementRates(("refund",), 0.05, 500, ("refund",))
        for canary, rate in ((True, canary_rate), (False, 0.3)):
            labels = (draw.random((2_000, 1)) < rate).astype(np.float64)
            group = np.full(2_000, canary)
            rates.add(np.arange(2_000), group, labels, np.full(2_000, True), np.ones(2_000))
        said = judge(Evidence(CANARY, BETTER, served=rates.result()), RULES)
        assert isinstance(said, Rollback if breach else Promote) and breach in said.why
