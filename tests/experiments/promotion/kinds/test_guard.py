from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.studies.promotion.simulated_pairs import Pair
from benchmarks.studies.promotion.study_guard import Course, run_once
from experiments.evidence.verdict import CanaryEngagement, Hold, Rollback
from experiments.promotion.kinds import guard
from experiments.promotion.kinds.guard import TAKING_BACK, GuardEvidence, GuardState
from experiments.promotion.kinds.line_state import ENDED, SHADOW
from experiments.promotion.line_kinds import reserved
from experiments.statistics.comparison import Comparison, ComparisonResult, PairedPredictions
from experiments.statistics.significance import AnytimeEstimate
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Candidate, Control, Decision, Live
from tests.support.folded_control import BACK, C1, C2, FIRST, GUARDED, IS_LIVE, folded, stage

RULES = PromotionConfig()
GUARD = GuardState(Candidate(line="guard-1", registry=""), live=Live(line="main", epoch=1))
EQUAL = ComparisonResult(
    examples=5_000,
    users=400,
    loss=AnytimeEstimate(0.0, -0.004, 0.004, 5_000),
    auc=AnytimeEstimate(0.0, -0.01, 0.01, 5_000),
    user_auc=AnytimeEstimate(0.0, -0.01, 0.01, 5_000),
    live_calibration=1.0,
    candidate_calibration=1.02,
)
FINE = GuardEvidence(EQUAL, recent=EQUAL, served=CanaryEngagement(5_000, 5_000, users=400, live_users=400))


def test_a_line_as_good_as_what_it_replaced_is_guarded_to_the_end_and_stays() -> None:
    said = GUARD.judge(FINE, RULES)
    assert isinstance(said, Hold) and not said.final
    assert said.why.startswith("5000 of 20000 examples compared, nothing against what is live")
    at_end = replace(FINE, compared=replace(EQUAL, examples=20_000))
    said = GUARD.judge(at_end, RULES)
    assert isinstance(said, Hold) and said.final and said.evidence is at_end


def test_nothing_is_said_without_evidence() -> None:
    said = GUARD.judge(GuardEvidence(), RULES)
    assert isinstance(said, Hold) and not said.final


BY_MORE = AnytimeEstimate(0.05, 0.021, 0.08, 5_000)  # by more than any margin but recall's
BY_LESS = AnytimeEstimate(0.009, 0.005, 0.013, 5_000)  # known to be worse, but within the margins


@pytest.mark.parametrize(
    "worse, what",
    [
        ({"loss": BY_MORE}, "log loss is worse"),
        ({"auc": BY_MORE}, "AUC is worse"),
        ({"user_auc": BY_MORE}, "AUC within users is worse"),
        ({"recall": BY_MORE}, "share retrieved"),
        ({"segments": {"new viewers": BY_MORE}}, "log loss in new viewers is worse"),
    ],
)
@pytest.mark.parametrize("when", ["compared", "recent"])
def test_known_to_be_worse_by_more_than_a_margin_is_taken_back(
    worse: dict[str, AnytimeEstimate], what: str, when: str
) -> None:
    evidence = replace(FINE, **{when: replace(EQUAL, **worse)})
    said = GUARD.judge(evidence, RULES)
    assert isinstance(said, Rollback) and what in said.why and said.evidence is evidence
    assert said.why.startswith("lately live's" if when == "recent" else "live's")


@pytest.mark.parametrize(
    "worse",
    [{"loss": BY_LESS}, {"auc": BY_LESS}, {"segments": {"new viewers": BY_LESS}},
     {"loss": AnytimeEstimate(0.3, 0.0, 0.6)}],
)  # fmt: skip
def test_what_may_come_of_what_live_chose_to_show_takes_nothing_back(
    worse: dict[str, AnytimeEstimate],
) -> None:
    assert isinstance(GUARD.judge(replace(FINE, compared=replace(EQUAL, **worse)), RULES), Hold)


def test_a_guard_that_is_broken_ends_whatever_it_says_of_live() -> None:
    broken = replace(FINE, failed=("3 of its scores aren't finite",), compared=ComparisonResult(loss=BY_MORE))
    said = GUARD.judge(broken, RULES)
    assert isinstance(said, Hold) and said.final
    assert said.why == "the former live line can't take over: 3 of its scores aren't finite"


@pytest.mark.parametrize(
    "served, why",
    [
        (
            CanaryEngagement(1_000, 1_000, degraded=0.08, live_degraded=0.02, users=30, live_users=30),
            "8.0% of live's lists went without",
        ),
        (
            CanaryEngagement(
                100, 900, {"like": AnytimeEstimate(-0.2, -0.25, -0.11)}, users=30, live_users=30
            ),
            "fewer like than before",
        ),
        (
            CanaryEngagement(100, 900, {"skip": AnytimeEstimate(0.2, 0.11, 0.25)}, users=30, live_users=30),
            "more skip than before",
        ),
    ],
)
def test_what_live_itself_shows_may_take_it_back(served: CanaryEngagement, why: str) -> None:
    said = GUARD.judge(replace(FINE, served=served), RULES)
    assert isinstance(said, Rollback) and why in said.why


@pytest.mark.parametrize(
    "served",
    [
        CanaryEngagement(999, 1_000, degraded=0.5),  # too few lists to say
        CanaryEngagement(1_000, 0, degraded=0.5),  # nobody knows how it was before
        CanaryEngagement(1_000, 999, degraded=0.5),
        CanaryEngagement(1_000, 1_000, degraded=0.08, live_degraded=0.04),  # nearly as many before
        CanaryEngagement(100, 900, {"like": AnytimeEstimate(-0.2, -0.3, -0.09)}),  # times differ
        CanaryEngagement(100, 900, {"hide": AnytimeEstimate(-0.2, -0.3, -0.15)}),  # wanted
    ],
)
def test_what_was_so_before_or_may_be_chance_takes_nothing_back(served: CanaryEngagement) -> None:
    served = replace(served, users=400, live_users=400)
    assert isinstance(GUARD.judge(replace(FINE, served=served), RULES), Hold)


FAR = {"over": AnytimeEstimate(0.1, 0.05, 0.15), "under": AnytimeEstimate(0.2, 0.1, 0.3)}
DEGRADED = CanaryEngagement(1_000, 1_000, degraded=0.5, users=30, live_users=30)
FEWER = CanaryEngagement(1_000, 1_000, {"like": AnytimeEstimate(-0.2, -0.25, -0.11)}, users=30, live_users=30)


@pytest.mark.parametrize(
    "bad, users",
    [
        *[
            ({when: replace(EQUAL, users=30, **worse)}, (when, "users"))
            for when in ("compared", "recent")
            for worse in ({"auc": BY_MORE}, {"segments": {"new viewers": BY_MORE}})
        ],
        (FAR | {"compared": replace(EQUAL, users=30, live_calibration=1.9)}, ("compared", "users")),
        ({"served": DEGRADED}, ("served", "users")),
        ({"served": DEGRADED}, ("served", "live_users")),
        ({"served": FEWER}, ("served", "users")),
        ({"served": FEWER}, ("served", "live_users")),
    ],
)
def test_nothing_is_decided_by_fewer_than_thirty_users(bad: dict[str, Any], users: tuple[str, str]) -> None:
    """One heavy client gives blocks enough for an AUC, and lists enough for a share of them."""
    thirty = replace(FINE, **bad)
    assert isinstance(GUARD.judge(thirty, RULES), Rollback)
    of, name = users
    fewer = replace(thirty, **{of: replace(getattr(thirty, of), **{name: 29})})
    assert isinstance(GUARD.judge(fewer, RULES), Hold)


@pytest.mark.parametrize("hours, over", [(23.9, False), (24.0, True)])
def test_a_guard_ends_by_time_where_little_is_compared(hours: float, over: bool) -> None:
    said = GUARD.judge(replace(FINE, hours=hours), RULES)
    assert isinstance(said, Hold) and said.final == over
    assert said.why.startswith("24 hours over, 5000 examples compared, nothing against") == over
    for_ever = GUARD.judge(replace(FINE, hours=hours), replace(RULES, guard_hours=0.0))
    assert isinstance(for_ever, Hold) and not for_ever.final
    short = GUARD.judge(replace(FINE, hours=hours), replace(RULES, guard_hours=0.5))
    assert isinstance(short, Hold) and short.final


def test_what_is_known_against_live_counts_in_the_last_hour_too() -> None:
    worse = replace(FINE, compared=replace(EQUAL, loss=BY_MORE), hours=30.0)
    assert isinstance(GUARD.judge(worse, RULES), Rollback)


def test_predictions_that_are_no_numbers_take_it_back_at_once() -> None:
    said = GUARD.judge(GuardEvidence(not_finite=2), RULES)
    assert isinstance(said, Rollback) and said.why == "2 of live's predictions aren't finite"


def predictions(live: float, happens: float, size: int = 4_000) -> PairedPredictions:
    draw = np.random.default_rng(3)
    labels_N = (draw.random(size) < happens).astype(np.float64)
    return PairedPredictions(np.arange(size) % 500, np.full(size, live), np.full(size, happens), labels_N)


@pytest.mark.parametrize(
    "live, happens, over, under",
    [
        (0.5, 0.25, True, False),
        (0.1, 0.25, False, True),
        (0.3, 0.25, False, False),
        (0.21, 0.25, False, False),
    ],
)
def test_predictions_far_from_what_happens_are_known(
    live: float, happens: float, over: bool, under: bool
) -> None:
    """By 1.5 times, as the rules have it."""
    calibration = guard.Calibration(RULES)
    calibration.add(predictions(live, happens))
    far = (calibration.over.estimate().low > 0, calibration.under.estimate().high < 0)
    assert far == (over, under)


@pytest.mark.parametrize("other, back", [(1.1, True), (2.0, False), (float("nan"), False)])
def test_a_world_that_both_mistake_takes_nothing_back(other: float, back: bool) -> None:
    compared = replace(EQUAL, live_calibration=1.9, candidate_calibration=other)
    said = GUARD.judge(replace(FINE, compared=compared, **FAR), RULES)
    assert isinstance(said, Rollback) == back
    assert not back or "live's predictions are 1.900 of what happens" in said.why


def test_weights_of_those_that_stand_for_others_count() -> None:
    """A negative that stands for four: without its weight, live would look far too low."""
    labels_N = np.tile([1.0, 0.0], 1_000)
    weights_N = np.where(labels_N > 0, 1.0, 4.0)
    pairs = PairedPredictions(np.arange(2_000) % 500, np.full(2_000, 0.2), np.full(2_000, 0.2), labels_N)
    for weights, low in ((weights_N, False), (None, True)):
        calibration = guard.Calibration(RULES)
        calibration.add(replace(pairs, weights_N=weights))
        assert (calibration.under.estimate().high < 0) == low


@pytest.mark.slow
def test_an_equal_line_is_taken_back_seldom_even_without_margins() -> None:
    """At every step of 3,000 examples: alpha is 0.1 of all that is looked at, so of 60 runs 6 are expected at
    the most; the bounds are wider than they need be, and none of these is taken back."""
    rules = replace(
        RULES, alpha=0.1, guard_examples=3_000, least_examples=1_000, guard_auc_margin=0.0,
        guard_loss_margin=0.0, segment_margin=0.0, guard_engagement_margin=0.0,
    )  # fmt: skip
    equal = Course(Pair(0.8, 0.8), Pair(0.8, 0.8))
    assert sum(run_once(equal, seed, rules).how == "back" for seed in range(60)) <= 3


@pytest.mark.slow
def test_a_line_that_breaks_while_it_is_guarded_is_taken_back() -> None:
    equal, broken = Pair(0.8, 0.8), Pair(3.0, 0.8)
    rules = replace(RULES, guard_examples=12_000)
    for chosen in (False, True):
        ended = run_once(Course(equal, broken, 6_000), 1, rules, chosen)
        assert ended.how == "back" and 6_000 < ended.examples < 9_000
        assert run_once(Course(equal, equal), 1, rules, chosen).how == "stays"


def test_bounds_of_a_guard_share_alpha_and_are_tightest_at_twice_the_least_examples() -> None:
    pairs = predictions(0.5, 0.25)
    for of_rules, alpha in (
        (guard.comparison, RULES.alpha / 6),
        (guard.recent_comparison, RULES.alpha / 30),  # windows of a fifth of the guard's examples
    ):
        expected = Comparison(alpha, 4_000, RULES.block_examples)
        compared = of_rules(RULES)
        for each in (expected, compared):
            each.add(pairs)
        assert compared.result() == expected.result()


# --- its stages ---

WORSE = Decision(line="guard-1", verdict="rollback", why="worse", time_ms=80)


def test_what_was_live_guards_against_what_replaced_it() -> None:
    lifecycle = folded(FIRST, C1, GUARDED)
    guard = lifecycle.candidates["guard-1"]
    assert isinstance(guard, GuardState) and guard.live is GUARDED
    assert (guard.stage, guard.since_ms) == (SHADOW, 70)
    assert guard in lifecycle.active and lifecycle.canary is None
    assert list(folded(FIRST, C1, IS_LIVE).candidates) == ["c1"]


def test_its_word_takes_the_live_line_back_and_quarantines_what_that_served_alone() -> None:
    decided = folded(FIRST, C1, GUARDED, WORSE)
    assert stage(decided, "guard-1") == TAKING_BACK and decided.candidates["guard-1"].active
    assert decided.rolled_back == [] and decided.excluded == []  # a guard has answered nobody
    back = folded(FIRST, C1, GUARDED, WORSE, BACK)
    assert stage(back, "guard-1") == ENDED and back.active == []
    assert back.excluded == ["main/1", "c1/0"]
    assert list(back.candidates) == ["c1", "guard-1"]  # nothing guards what was there before


@pytest.mark.parametrize(
    "said, stage_then",
    [
        (Decision(line="guard-1", verdict="hold", final=True, why="nothing against it"), ENDED),
        (Decision(line="guard-1", verdict="hold", why="not yet"), SHADOW),
        (Decision(line="guard-1", verdict="promote", to="canary", share=0.5), SHADOW),
        (BACK, ENDED),
        (Live(line="main", epoch=2, base_step=9, parent_epoch=1, candidate="c2", guarded=True), ENDED),
    ],
)
def test_how_a_guard_ends(said: Control, stage_then: str) -> None:
    lifecycle = folded(FIRST, C1, C2, GUARDED, said)
    assert stage(lifecycle, "guard-1") == stage_then
    assert lifecycle.canary is None
    guards = [its.line for its in lifecycle.active if isinstance(its, GuardState)]
    next_one = isinstance(said, Live) and said.guarded
    assert guards == (["guard-2"] if next_one else ["guard-1"] if stage_then == SHADOW else [])


def test_one_that_has_ended_says_nothing_more() -> None:
    over = Decision(line="guard-1", verdict="hold", final=True, why="nothing against it")
    lifecycle = folded(FIRST, C1, GUARDED, over)
    assert not lifecycle.fold(WORSE) and stage(lifecycle, "guard-1") == ENDED


def test_a_name_that_a_candidate_has_is_no_guards() -> None:
    theirs = Candidate(line="guard-1", registry="r")
    lifecycle = folded(FIRST, C1, theirs, GUARDED)
    assert lifecycle.candidates["guard-1"].candidate is theirs


def test_names_of_guards_are_reserved() -> None:
    assert "is a name of a guard" in reserved("guard-7") and not reserved("guardian")
