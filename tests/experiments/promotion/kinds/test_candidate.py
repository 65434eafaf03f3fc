from dataclasses import replace

import numpy as np
import pytest

from experiments.evidence.verdict import (
    CANARY,
    CanaryEngagement,
    EngagementRates,
    Evidence,
    GoLive,
    Hold,
    Promote,
    Rollback,
)
from experiments.promotion.kinds.candidate import TAKING_OVER, CandidateState
from experiments.promotion.kinds.line_state import ENDED, LIVE, SHADOW
from experiments.statistics.comparison import ComparisonResult
from experiments.statistics.significance import AnytimeEstimate
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Decision, Live
from tests.support.folded_control import C1, C2, FIRST, IS_LIVE, TO_ALL, TO_CANARY, folded, stage

RULES = PromotionConfig()
IN_SHADOW, AS_CANARY = (CandidateState(C1, stage) for stage in (SHADOW, CANARY))
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
    said = IN_SHADOW.judge(Evidence(BETTER), RULES)
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
    said = IN_SHADOW.judge(Evidence(compared), RULES)
    assert isinstance(said, Hold) and not said.final
    assert why in said.why


def test_a_miscalibrated_candidate_may_replace_a_worse_calibrated_line() -> None:
    compared = replace(BETTER, candidate_calibration=1.3, live_calibration=1.5)
    assert isinstance(IN_SHADOW.judge(Evidence(compared), RULES), Promote)


BAD = [
    (Evidence(failed=("3 of its scores aren't finite",)), "aren't finite"),
    (Evidence(replace(SAME, loss=AnytimeEstimate(-0.1, -0.2, -0.01))), "log loss is worse"),
    (Evidence(replace(SAME, auc=AnytimeEstimate(-0.1, -0.2, -0.01))), "AUC is worse"),
    (
        Evidence(replace(BETTER, recall=AnytimeEstimate(-0.1, -0.2, -0.03))),
        "retrieves less of what viewers engage with",
    ),
    (
        Evidence(replace(BETTER, segments={"new viewers": AnytimeEstimate(-0.1, -0.2, -0.02)})),
        "worse in new viewers",
    ),
]


@pytest.mark.parametrize("evidence, why", BAD)
def test_what_is_bad_is_given_up_in_shadow_and_rolled_back_as_canary(evidence: Evidence, why: str) -> None:
    held = IN_SHADOW.judge(evidence, RULES)
    assert isinstance(held, Hold) and held.final and why in held.why
    back = AS_CANARY.judge(evidence, RULES)
    assert isinstance(back, Rollback) and why in back.why


def test_one_that_cannot_be_told_apart_is_given_up_in_the_end() -> None:
    said = IN_SHADOW.judge(Evidence(replace(SAME, examples=RULES.most_examples)), RULES)
    assert isinstance(said, Hold) and said.final and "no difference after" in said.why


def test_a_canary_goes_on_once_it_was_shown_often_enough() -> None:
    few = Evidence(BETTER, served=CanaryEngagement(RULES.canary_examples - 1))
    assert isinstance(AS_CANARY.judge(few, RULES), Hold)
    enough = replace(few, served=CanaryEngagement(RULES.canary_examples))
    said = AS_CANARY.judge(enough, RULES)
    assert isinstance(said, Promote) and said.to == "all"
    lists = CanaryEngagement(RULES.canary_examples, 900, degraded=0.12, live_degraded=0.1)
    overloaded = AS_CANARY.judge(replace(few, served=lists), RULES)  # which live's lists show as well
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
    said = AS_CANARY.judge(Evidence(BETTER, served=served), RULES)
    assert isinstance(said, Rollback) and why in said.why


def test_first_lists_without_a_ranker_do_not_take_a_canary_back() -> None:
    served = CanaryEngagement(100, 900, degraded=1.0, users=9)
    assert isinstance(AS_CANARY.judge(Evidence(BETTER, served=served), RULES), Hold)


@pytest.mark.parametrize(
    "name, value", [("share", 0.0), ("alpha", 0.5), ("canary_share", 1.5), ("latency", 0.5)]
)
def test_rules_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"promotion.{name} is {value}, expected"):
        replace(RULES, **{name: value})


def test_fewer_of_an_unwanted_label_are_no_breach_and_more_are() -> None:
    draw = np.random.default_rng(0)
    for canary_rate, breach in ((0.1, ""), (0.5, "viewers give more refund: gained +0.")):
        rates = EngagementRates(("refund",), 0.05, 500, ("refund",))
        for canary, rate in ((True, canary_rate), (False, 0.3)):
            labels = (draw.random((2_000, 1)) < rate).astype(np.float64)
            group = np.full(2_000, canary)
            rates.add(np.arange(2_000), group, labels, np.full(2_000, True), np.ones(2_000))
        said = AS_CANARY.judge(Evidence(BETTER, served=rates.result()), RULES)
        assert isinstance(said, Rollback if breach else Promote) and breach in said.why


def test_one_that_takes_over_goes_live_unless_something_is_against_it() -> None:
    taking_over = replace(AS_CANARY, stage=TAKING_OVER, epoch=1)
    assert isinstance(taking_over.judge(Evidence(SAME), RULES), GoLive)
    assert isinstance(taking_over.judge(BAD[0][0], RULES), Rollback)


# --- its stages ---


def test_a_candidate_goes_through_its_stages() -> None:
    assert stage(folded(FIRST, C1)) == SHADOW
    canary = folded(FIRST, C1, TO_CANARY)
    assert stage(canary) == CANARY and canary.canary is canary.candidates["c1"]
    taking_over = folded(FIRST, C1, TO_CANARY, TO_ALL)
    assert stage(taking_over) == TAKING_OVER and taking_over.candidates["c1"].epoch == 1
    assert taking_over.canary is not None and taking_over.canary.share == 0.3  # it answers until it is live
    live = folded(FIRST, C1, TO_CANARY, TO_ALL, IS_LIVE)
    assert stage(live) == LIVE and live.canary is None and live.live is IS_LIVE


def test_one_that_was_live_ends_with_the_next() -> None:
    second = Live(line="main", epoch=2, base_step=9, parent_epoch=1, candidate="c2")
    lifecycle = folded(FIRST, C1, C2, IS_LIVE, second)
    assert (stage(lifecycle), stage(lifecycle, "c2")) == (ENDED, LIVE)
    assert lifecycle.excluded == []  # nobody went back


def test_held_for_good_or_rolled_back_it_ends() -> None:
    assert stage(folded(C1, Decision(line="c1", verdict="hold", final=True, why="no"))) == ENDED
    open_still = folded(C1, Decision(line="c1", verdict="hold", why="not yet"))
    assert stage(open_still) == SHADOW and open_still.candidates["c1"].why == "not yet"
    back = folded(C1, TO_CANARY, Decision(line="c1", verdict="rollback", why="worse"))
    assert stage(back) == ENDED and back.canary is None and back.excluded == ["c1/0"]


def test_a_canary_answers_its_share_of_users_the_same_ones_always() -> None:
    canary = folded(FIRST, C1, TO_CANARY).canary
    assert canary is not None
    users = [f"u{n}" for n in range(4_000)]
    chosen = [user for user in users if canary.serves(user)]
    assert abs(len(chosen) / len(users) - 0.3) < 0.03
    assert chosen == [user for user in users if canary.serves(user)]
