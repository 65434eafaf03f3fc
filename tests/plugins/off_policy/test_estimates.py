"""Estimates are those of Open Bandit Pipeline, hold the truth as often as they say, and are refused without
support."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.off_policy.estimates import (
    DR,
    IPS,
    LEAST_ESS,
    LEAST_USERS,
    SNDR,
    SNIPS,
    WeightedLists,
    by_rank,
    diagnose_support,
    estimates,
)
from plugins.off_policy.propensities import probabilities_along, propensity_ratios
from serving.selection.sampling import Cap, SamplingInput, SamplingParams, sample_slate
from tests.support.paths import ROOT

REFERENCE = json.loads((ROOT / "tests/support/obp_cases.json").read_text())


def lists_of(case: dict) -> WeightedLists:
    actions, target = np.array(case["actions"]), np.array(case["target"])
    q_hat, mine = np.array(case["q_hat"]), np.array(case["propensities"])
    at = np.take_along_axis(target, actions[..., None], 2)[..., 0]
    said = np.take_along_axis(q_hat, actions[..., None], 2)[..., 0]
    none = np.zeros(actions.shape)
    rewards = np.array(case["rewards"])
    return WeightedLists(at / mine, rewards, said, (target * q_hat).sum(2), none, np.arange(len(actions)))


def bandit(
    seed: int, users: int, each: int = 1, ranks: int = 1, arms: int = 4, bold: float = 0.7, loved: float = 0.0
) -> tuple[WeightedLists, float]:
    """Lists of a bandit in which items' worth is known and users differ by ``loved``; and the true value of
    the target, which draws rank by rank with replacement."""
    draw = np.random.default_rng(seed)
    worth = np.linspace(0.1, 0.6, arms)
    logged, target = np.full(arms, 1 / arms), np.exp(bold * np.arange(arms))
    target /= target.sum()
    user_L = np.repeat(np.arange(users), each)
    mood_L = np.repeat(draw.normal(0, loved, users), each).clip(-0.1, 0.3)
    actions = draw.choice(arms, (len(user_L), ranks), p=logged)
    rewards = (draw.random(actions.shape) < worth[actions] + mood_L[:, None]).astype(float)
    expected = np.full(actions.shape, target @ worth)
    none = np.zeros(actions.shape)
    lists = WeightedLists((target / logged)[actions], rewards, worth[actions], expected, none, user_L)
    truth = ranks * (
        target @ worth + np.mean(np.random.default_rng(1).normal(0, loved, 200_000).clip(-0.1, 0.3))
    )
    return lists, float(truth)


def by_name(lists: WeightedLists) -> dict:
    return {its.name: its for its in estimates(lists)}


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: f"{len(case['actions'])} lists")
def test_estimates_are_those_of_open_bandit_pipeline(case: dict) -> None:
    ours = {name: its.value for name, its in by_name(lists_of(case)).items()}
    assert set(case["values"]) <= set(ours)
    for name, value in case["values"].items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name


def test_the_logged_policy_itself_is_worth_what_was_earned() -> None:
    lists, _ = bandit(0, 200, ranks=3)
    same = WeightedLists(np.ones((200, 3)), lists.rewards_LR, *[np.zeros((200, 3))] * 3, lists.users_L)
    earned = lists.rewards_LR.sum(1).mean()
    for its in estimates(same):
        assert its.value == pytest.approx(earned) and its.lift == pytest.approx(0, abs=1e-12)
        assert its.lift_low == pytest.approx(0, abs=1e-12) and its.worth_lists == pytest.approx(200)
    assert diagnose_support(same).ess == 200 and diagnose_support(same).problems() == ()
    assert by_rank(same).sum() == pytest.approx(earned)


def test_a_perfect_model_makes_doubly_robust_the_surest_and_a_wrong_one_costs_no_truth() -> None:
    lists, truth = bandit(1, 4000, bold=1.2)
    its = by_name(lists)
    assert its[DR].error < 0.8 * its[IPS].error and its[SNDR].error < 0.8 * its[IPS].error
    wrong = WeightedLists(
        lists.ratios_LR, lists.rewards_LR, np.full_like(lists.predicted_LR, 0.9),
        np.full_like(lists.predicted_LR, 0.9), lists.unsupported_LR, lists.users_L,
    )  # fmt: skip
    for name, one in by_name(wrong).items():
        assert abs(one.value - truth) < 4 * one.error, name


@pytest.mark.parametrize("each, loved", [pytest.param(1, 0.0, marks=pytest.mark.slow), (8, 0.15)])
def test_intervals_hold_the_truth_where_a_users_lists_are_alike(each: int, loved: float) -> None:
    held: dict[str, int] = dict.fromkeys((IPS, SNIPS, DR, SNDR), 0)
    runs = 300
    for seed in range(runs):
        lists, truth = bandit(seed, 150, each, ranks=2, loved=loved)
        for its in estimates(lists):
            held[its.name] += its.low <= truth <= its.high
    # 0.95 less three standard errors of 300 runs is 0.912.
    assert all(count / runs > 0.912 for count in held.values()), held


def test_without_clusters_intervals_would_be_too_narrow() -> None:
    lists, _ = bandit(3, 150, 8, ranks=2, loved=0.15)
    alone = WeightedLists(
        lists.ratios_LR, lists.rewards_LR, lists.predicted_LR, lists.expected_LR, lists.unsupported_LR,
        np.arange(len(lists)),
    )  # fmt: skip
    assert by_name(lists)[SNDR].error > 1.1 * by_name(alone)[SNDR].error


def test_what_the_log_had_no_chance_to_show_is_refused_with_its_share() -> None:
    lists, _ = bandit(4, 400, ranks=2)
    gap = np.zeros((400, 2))
    gap[:, 1] = 0.3
    its = diagnose_support(
        WeightedLists(
            lists.ratios_LR, lists.rewards_LR, lists.predicted_LR, lists.expected_LR, gap, lists.users_L
        )
    )
    weights = lists.ratios_LR[:, 0]
    assert its.unsupported == pytest.approx(0.3 * weights.mean() / 2)
    (why,) = its.problems()
    assert "had no chance on the log" in why and "policy.explore" in why


def test_too_few_effective_lists_are_refused_with_the_rank_and_how_many_ranks_would_do() -> None:
    lists, _ = bandit(5, 2000, ranks=8, bold=1.2)
    its = diagnose_support(lists)
    assert its.ess_R[0] > LEAST_ESS > its.ess_R[-1]
    (why,) = its.problems()
    good = int((its.ess_R >= LEAST_ESS).sum())
    assert f"ranks: {good}" in why and "effective sample size" in why
    assert diagnose_support(lists.first(good)).problems() == ()


def test_few_users_are_refused_however_many_lists_they_have() -> None:
    lists, _ = bandit(6, LEAST_USERS - 1, each=50)
    (why,) = diagnose_support(lists).problems()
    assert f"{LEAST_USERS - 1} users" in why


def test_weights_that_miss_a_part_of_the_target_are_noticed() -> None:
    """Propensities that are wrong, or items that were all but never shown: weights aren't 1 on average."""
    lists, _ = bandit(7, 3000)
    half = WeightedLists(
        lists.ratios_LR * 0.7, lists.rewards_LR, lists.predicted_LR, lists.expected_LR, lists.unsupported_LR,
        lists.users_L,
    )  # fmt: skip
    (why,) = diagnose_support(half).problems()
    assert "mean weight at rank 1 is 0.69" in why


def shorter(seed: int, lists: int = 3000) -> tuple[WeightedLists, float]:
    """Three ranks of six items, judged for a policy that has one of an author: half of the lists are of items
    of two authors, and end after two ranks under it. And what it earns, as told by drawing its lists."""
    worth_N, draw = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), np.random.default_rng(seed)
    authors = (np.array([1, 1, 1, 2, 2, 2]), np.arange(6))
    mine, theirs = (
        [
            SamplingInput(tilt * worth_N, SamplingParams(1.0, 0.1, 0.0), (Cap("author", its_N, most),))
            for its_N in authors
        ]
        for tilt, most in ((0.0, 2), (2.0, 1))
    )
    along, rewards = [], np.zeros((lists, 3))
    for row in range(lists):
        its = sample_slate(mine[row % 2], 3, request_id=f"{seed} {row}")
        theirs_RN = probabilities_along(theirs[row % 2], its.positions, 3)[0]
        along.append(propensity_ratios(theirs_RN, its.positions, its.propensities))
        rewards[row] = draw.random(3) < worth_N[its.positions]
    ratios, ended = (np.array(part) for part in zip(*along, strict=True))
    none = np.zeros((lists, 3))
    run = [sample_slate(theirs[n % 2], 3, request_id=f"t{n}").positions for n in range(8_000)]
    truth = np.mean([worth_N[positions].sum() for positions in run])
    return WeightedLists(ratios, rewards, none, none, none, np.arange(lists), ended), float(truth)


def test_lists_that_end_sooner_under_the_target_are_worth_what_it_earns_until_then() -> None:
    lists, truth = shorter(8)
    for its in estimates(lists):
        assert abs(its.value - truth) < 4 * its.error, (its, truth)
        assert its.lift == pytest.approx(its.value - lists.rewards_LR.sum(1).mean())
    assert diagnose_support(lists).problems() == () and by_rank(lists)[2] < 0.3
    assert lists.first(2).ended_LR is not None and lists.first(2).ended_LR.shape == (3000, 2)


def test_nothing_is_estimated_of_no_lists() -> None:
    none = np.zeros((0, 3))
    empty = WeightedLists(none, none, none, none, none, np.zeros(0, np.int64))
    assert diagnose_support(empty).problems()
    with pytest.raises(ValueError, match="0 lists"):
        estimates(empty)


def test_arrays_that_do_not_fit_are_refused() -> None:
    two, three = np.ones((2, 1)), np.ones((3, 1))
    with pytest.raises(ValueError, match="rewards_LR has shape"):
        WeightedLists(two, three, two, two, two, np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="users_L has shape"):
        WeightedLists(two, two, two, two, two, np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="not finite"):
        WeightedLists(two * np.inf, two, two, two, two, np.zeros(2, np.int64))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 4), st.floats(0.1, 5.0))
def test_whatever_the_lists_bounds_stand_around_and_scale_with_rewards(
    seed: int, users: int, ranks: int, scale: float
) -> None:
    lists, _ = bandit(seed, users, 2, ranks)
    scaled = WeightedLists(
        lists.ratios_LR, scale * lists.rewards_LR, scale * lists.predicted_LR, scale * lists.expected_LR,
        lists.unsupported_LR, lists.users_L,
    )  # fmt: skip
    for one, other in zip(estimates(lists), estimates(scaled), strict=True):
        assert one.low <= one.value <= one.high
        assert other.value == pytest.approx(scale * one.value, abs=1e-9)
        assert other.error == pytest.approx(scale * one.error, abs=1e-9)
    its = diagnose_support(lists)
    assert (its.ess_R <= len(lists) + 1e-9).all() and (its.ess_R >= 0).all()


def test_bounds_hold_with_95_percent_unless_told_otherwise() -> None:
    lists, _ = bandit(3, 300)
    assert estimates(lists) == estimates(lists, 0.05) != estimates(lists, 0.06)
