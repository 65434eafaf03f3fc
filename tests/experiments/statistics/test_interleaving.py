"""Whose turn it is, whom a list's ranks are credited to, and what credits say."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.assignment.definition import INTERLEAVED, read_experiment, read_experiments
from experiments.assignment.policy import Policies
from experiments.statistics.interleaving import (
    BETTER,
    BROKEN,
    OPEN,
    WORSE,
    ArmCredits,
    TeamDraft,
    pick_shares,
    preference,
)
from recsys.config.policy_config import PolicyConfig
from recsys.config.yaml_with_lines import YamlError
from tests.support.paths import ROOT

LABELS = ("long_view", "click", "like", "hide")
TEAMS = ("a", "b")
TEXT = """
name: duel
kind: interleaving
credit: {click: 1.0, like: 2.0}
arms:
  control:
  treatment: {overrides: {weights.like: 3.0}}
"""


def read(text: str):
    return read_experiment(text, "duel.yaml", PolicyConfig(), LABELS)


def test_coins_are_fair_and_differ_from_pair_to_pair() -> None:
    first, second = [], []
    for n in range(2_000):
        draft = TeamDraft(f"r{n}", TEAMS)
        teams = [draft.picked(draft.turn()) for _ in range(4)]
        first.append(teams[0] == "a")
        second.append(teams[2] == "a")
    assert abs(np.mean(first) - 0.5) < 0.04 and abs(np.mean(second) - 0.5) < 0.04
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.07


def credits(
    a: float, b: float, users: int = 400, seed: int = 0, coins: tuple[int, int] = (2_000, 2_000)
) -> ArmCredits:
    draw = np.random.default_rng(seed)
    busy = draw.gamma(2, 5, users)
    earned = np.column_stack([draw.poisson(a * busy), draw.poisson(b * busy)]).astype(float)
    return ArmCredits(earned, earned, np.full(users, 10), coins)


def of_picks(earned_U2: np.ndarray) -> ArmCredits:
    """Where each item is its picker's alone."""
    return ArmCredits(earned_U2, earned_U2, np.full(len(earned_U2), 10))


def part(its: ArmCredits, n: int) -> ArmCredits:
    return ArmCredits(its.picked_U2[:n], its.shared_U2[:n], its.lists_U[:n])


def weighed(chances_R2: np.ndarray, sides: list[int]) -> float:
    """P(these picked | coins), of all ranks."""
    return float(np.prod([chances_R2[rank, side] for rank, side in enumerate(sides)]))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 2, 4, 6]), st.integers(0, 10_000))
def test_shares_weigh_all_ways_to_have_made_the_list(ranks: int, seed: int) -> None:
    chances_R2 = np.random.default_rng(seed).dirichlet([0.3, 0.3], ranks)
    coins = list(itertools.product((0, 1), repeat=(ranks + 1) // 2))
    ways = [[side for coin in its for side in (coin, 1 - coin)][:ranks] for its in coins]
    weights = np.array([weighed(chances_R2, way) for way in ways])
    expected = weights @ np.array(ways, float).reshape(len(ways), ranks) / weights.sum()
    assert pick_shares(chances_R2.reshape(ranks, 2), ways[0]) == pytest.approx(expected)


def test_where_no_chance_is_left_in_double_precision_who_picked_has_it() -> None:
    assert pick_shares(np.array([[0.0, 0.0], [1e-200, 1e-200]]), [1, 0]).tolist() == [1, 0]


def test_the_last_of_an_odd_number_is_its_picker_s_alone() -> None:
    assert pick_shares(np.array([[0.2, 0.6]]), [0]).tolist() == [0]
    assert pick_shares(np.array([[0.5, 0.5], [0.1, 0.3], [0.9, 0.1]]), [0, 1, 1]) == pytest.approx(
        [0.25, 0.75, 1]
    )


def explored(ranks: int, lists: int, users: int, seed: int, worth: float = 0.4) -> ArmCredits:
    """The control shows something else than the 20 best at one rank of 50, the treatment never. ``worth``: of
    what else there is; the best have 0.4."""
    draw, best, rest, seldom = np.random.default_rng(seed), 20, 80, 0.02
    picked_U2, shared_U2, first = np.zeros((users, 2)), np.zeros((users, 2)), [0, 0]
    for user in np.arange(users).repeat(lists):
        sides, chances, earned = [], [], []
        for rank in range(ranks):
            side = 1 - sides[-1] if rank % 2 else int(draw.random() < 0.5)
            other = side == 0 and draw.random() < seldom
            chances.append((seldom / rest, 0) if other else ((1 - seldom) / best, 1 / best))
            earned.append(float(draw.random() < (worth if other else 0.4)))
            sides.append(side)
        first[sides[0]] += 1
        share_R = pick_shares(np.array(chances), sides)
        shared_U2[user] += earned @ (1 - share_R), earned @ share_R
        picked_U2[user] += earned @ (1 - np.array(sides)), earned @ np.array(sides)
    return ArmCredits(picked_U2, shared_U2, np.full(users, lists), (first[0], first[1]))


@pytest.mark.parametrize(
    "ranks, lists",
    [(1, 1), (2, 1), (3, 1), *(pytest.param(*its, marks=pytest.mark.slow) for its in ((2, 5), (5, 2)))],
)
def test_what_one_seldom_shows_decides_nothing_before_it_came(ranks: int, lists: int) -> None:
    """With shares of single items, a quarter of these were called for the one that explores less."""
    called = 0
    for seed in range(40):
        whole = explored(ranks, lists, 300, seed)
        looks = [preference(part(whole, n)).verdict for n in (100, 150, 200, 300)]
        called += any(verdict in (BETTER, WORSE) for verdict in looks)
    assert called <= 4


def test_what_is_made_up_of_few_users_has_no_bounds() -> None:
    its = explored(2, 1, 300, 0, worth=0.9)
    many = np.tile([[1.0, 1.001]], (280, 1))  # a little more of nearly all
    few = np.tile([[1.5, 1.0]], (10, 1))
    shared_U2 = np.concatenate([many, few])
    picked_U2 = np.resize(its.picked_U2[its.picked_U2.sum(1) > 0], shared_U2.shape)
    found = preference(ArmCredits(picked_U2, shared_U2, np.ones(290, np.int64)))
    assert found.verdict == OPEN and found.high == np.inf
    assert "from some 10 users" in found.why and "280" in found.why


def test_shared_credits_need_fewer_users_and_are_as_right() -> None:
    """Two rankers that mostly agree; the treatment's own are liked a little more."""
    draw, users, called = np.random.default_rng(0), 400, []
    share_UR = draw.choice([0.45, 0.5, 0.55], (users, 40))
    liked_UR = draw.random((users, 40)) < 0.3 + 0.5 * (share_UR - 0.5)
    picked_UR = draw.random((users, 40)) < share_UR
    summed = [
        np.column_stack([(liked_UR * (1 - its)).sum(1), (liked_UR * its).sum(1)])
        for its in (picked_UR.astype(float), share_UR)
    ]
    for shared in summed:
        called.append(preference(ArmCredits(summed[0], shared, np.full(users, 5))))
    assert called[0].verdict == OPEN and called[1].verdict == BETTER
    assert called[0].low < called[1].low < called[1].high < called[0].high


def test_a_credit_that_few_picks_earned_has_no_bounds_however_it_is_shared() -> None:
    picked_U2 = lopsided(19, 2_000).picked_U2
    shared_U2 = 0.5 * picked_U2 + 0.25 * picked_U2.sum(1, keepdims=True)
    its = preference(ArmCredits(picked_U2, shared_U2, np.full(len(picked_U2), 10)))
    assert its.verdict == BETTER and "sign test" in its.why and its.high == np.inf


def test_who_earns_more_in_the_same_lists_is_better_and_the_other_way_round() -> None:
    its = preference(credits(1.0, 1.3))
    assert its.verdict == BETTER and its.low < 0.3 < its.high and its.p < 0.01 and its.sign_p < 0.01
    assert its.wins[0] > its.wins[1] and sum(its.wins) == its.users == 400 and its.lists == 4_000
    swapped = preference(credits(1.3, 1.0))
    assert swapped.verdict == WORSE and swapped.high < 0
    assert preference(credits(1.0, 1.0)).verdict == OPEN


def test_equals_are_seldom_called_however_often_one_looks() -> None:
    ever = 0
    for seed in range(100):
        whole = credits(1.0, 1.0, seed=seed)
        looks = [part(whole, n) for n in range(100, 401, 50)]
        ever += any(preference(its).verdict != OPEN for its in looks)
    assert ever <= 8


def test_coins_that_are_not_fair_break_it() -> None:
    its = preference(credits(1.0, 1.5, coins=(6_000, 5_000)))
    assert its.verdict == BROKEN and "first picks" in its.why


def test_few_users_and_no_credit_say_nothing() -> None:
    assert preference(credits(1.0, 2.0, users=99)).verdict == OPEN
    none = preference(of_picks(np.zeros((0, 2))))
    assert none.verdict == OPEN and none.p == 1 and none.sign_p == 1 and none.users == 0
    assert "99 users, expected 100" in preference(credits(1.0, 2.0, users=99)).why


def lopsided(control: int, treatment: int, users: int = 4_000) -> ArmCredits:
    """So many users gave one credit each, to either."""
    earned_U2 = np.zeros((users, 2))
    earned_U2[:control, 0] = 1.0
    earned_U2[users - treatment :, 1] = 1.0
    return of_picks(earned_U2)


@pytest.mark.parametrize("few", [0, 19])
def test_where_one_earns_all_but_nothing_signs_decide(few: int) -> None:
    worse, better = preference(lopsided(2_000, few)), preference(lopsided(few, 2_000))
    assert (worse.verdict, better.verdict) == (WORSE, BETTER)
    for its in (worse, better):
        assert its.p < 0.001 and (its.low, its.high) == (-1, np.inf)
        assert "2000" in its.why and f"{few}" in its.why and "sign test" in its.why
    its = preference(lopsided(12, few))
    assert its.verdict == OPEN and f"{few} users gave the treatment any credit and 12" in its.why
    assert preference(lopsided(20, 20)).high < np.inf


def test_users_who_are_all_alike_are_told_by_their_signs() -> None:
    its = preference(of_picks(np.tile([2.0, 3.0], (200, 1))))
    assert its.verdict == BETTER and "200 users gave more to the treatment" in its.why
    even = preference(of_picks(np.tile([2.0, 2.0], (200, 1))))
    assert even.verdict == OPEN and "both rank alike" in even.why


def test_signs_of_users_who_come_again_are_seldom_wrong_however_often_one_looks() -> None:
    draw, ever = np.random.default_rng(3), 0
    for _ in range(300):
        earned_U2 = np.zeros((300, 2))
        for _look in range(15):
            earned_U2 += draw.poisson(0.002, earned_U2.shape)
            ever += preference(of_picks(earned_U2)).verdict != OPEN
    assert ever <= 3


# --- its definition ---


def test_both_arms_are_rivals_in_the_policy_of_who_is_in() -> None:
    its = read(TEXT)
    assert its.interleaves and its.credited == {"click": 1.0, "like": 2.0}
    assert [arm.share for arm in its.arms] == [0.5, 0.5]
    policies = Policies(PolicyConfig(), [its])
    policy = policies.resolve("u1")
    assert policy is policies.resolve("u2")  # nobody is in one arm
    assert policy.arms == {"duel": INTERLEAVED} and policy.config == PolicyConfig()
    (control, one), (treatment, other) = policy.rivals
    assert (control, treatment) == ("control", "treatment")
    assert one.config == PolicyConfig() and other.config.weights["like"] == 3.0
    assert policy.digest not in (one.digest, other.digest)


def test_who_is_not_in_has_the_usual_policy_and_other_arms_are_in_both_rivals() -> None:
    its = read(TEXT + "traffic: 0.5\nlayer: duels\n")
    other = read_experiment(
        "name: cold\narms: {warm: {share: 1, overrides: {temperature: 0.01}}}", "c", PolicyConfig()
    )
    found = [Policies(PolicyConfig(), [its, other]).resolve(f"u{n}") for n in range(40)]
    inside = [policy for policy in found if policy.rivals]
    assert 5 < len(inside) < 35
    for policy in inside:
        assert policy.arms == {"duel": INTERLEAVED, "cold": "warm"}
        assert all(rival.config.temperature == 0.01 for _, rival in policy.rivals)
    assert all(policy.arms == {"cold": "warm"} for policy in found if not policy.rivals)


def test_without_credit_the_metric_is_credited() -> None:
    its = read(TEXT.replace("credit: {click: 1.0, like: 2.0}", "metric: click"))
    assert its.credited == {"click": 1.0}


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("weights.like: 3.0", "sources.fresh: 90", "both rank the same candidates"),
        ("weights.like: 3.0", "trust_after: 9", "both rank the same candidates"),
        ("{overrides: {weights.like: 3.0}}", "{trains: all}", "both rank by one line"),
        ("{overrides: {weights.like: 3.0}}", "{share: 0.4}", "two of share 0.5"),
        ("  control:\n", "  control:\n  third:\n", "two of share 0.5"),
        ("click: 1.0", "hide: 1.0", "a label that is wanted"),
        ("click: 1.0", "nonsense: 1.0", "expected labels: long_view"),
        ("click: 1.0", "click: -1.0", "weights above 0"),
        ("kind: interleaving", "ramp: {steps: [0.1]}\nkind: interleaving", "has no ramp"),
        ("kind: interleaving", "metrics: {guardrails: {hide: 0.1}}\nkind: interleaving", "same users"),
        ("kind: interleaving\n", "", "empty, expected {share: ...}"),
    ],
)
def test_what_cannot_be_interleaved_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(YamlError, match=said.replace("{", r"\{")):
        read(TEXT.replace(old, new))


def test_the_documented_example_can_be_read() -> None:
    page = (ROOT / "docs" / "explanation" / "experiments.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (text,) = [block for block in blocks if "kind: interleaving" in block]
    its = read_experiment(text, "docs", PolicyConfig(), (*LABELS, "share"))
    assert its.interleaves and its.credited == {"like": 1.0, "share": 2.0}


def test_credit_is_for_interleavings_and_two_of_them_need_one_layer() -> None:
    with pytest.raises(YamlError, match="'arms' or 'interleaving'"):
        read("name: x\nkind: other\narms: {a: {share: 1}}")
    with pytest.raises(YamlError, match="credit"):
        read("name: x\ncredit: {click: 1}\narms: {a: {share: 1}}")
    other = TEXT.replace("duel", "other").replace("weights.like: 3.0", "diversity: 0.1") + "layer: b\n"
    with pytest.raises(YamlError, match="both interleave"):
        read_experiments({"a": TEXT, "b": other}, PolicyConfig(), LABELS)


def test_by_default_bounds_hold_with_95_percent_and_are_tightest_at_two() -> None:
    shown = credits(1.0, 1.3)
    assert preference(shown) == preference(shown, 0.05, 0.02)
    assert preference(shown) not in (preference(shown, 0.04, 0.02), preference(shown, 0.05, 0.03))
