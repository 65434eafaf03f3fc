"""Effects of arms: exact where that can be worked out, and true to their promises over simulated users."""

import math

import numpy as np
import pytest

from benchmarks.studies.experiments.trial_world import simulate
from experiments.statistics.effect import ArmUsers, effect, eta_of, holm, influence, p_value, radius

ALPHA = 0.05
ETA = eta_of(0.06, ALPHA)


def users(seed: int, n: int = 400, share: float = 0.3, items: float = 10.0) -> ArmUsers:
    draw = np.random.default_rng(seed)
    shown = 1.0 + draw.poisson(items, n)
    return ArmUsers(draw.binomial(shown.astype(int), share).astype(float), shown)


def test_an_arm_beside_itself_has_no_effect() -> None:
    arm = users(0)
    found = effect(arm, arm, ALPHA, ETA)
    assert found.relative == 0 and found.p == 1 and not found.excludes_zero
    assert math.log1p(found.low) == pytest.approx(-math.log1p(found.high))


@pytest.mark.parametrize("share, bounded", [(0.9, False), (0.1, True)])
def test_a_client_with_most_of_an_arms_items_decides_nothing(share: float, bounded: bool) -> None:
    """Its long views are twice as many: the arm's ratio is nearly its own, and so is the variance."""
    arm = users(1)
    items = round(share / (1 - share) * arm.denominators_U.sum())
    shown_U, long_U = np.append(arm.denominators_U, items), np.append(arm.numerators_U, 0.6 * items)
    found = effect(ArmUsers(long_U, shown_U), users(2), ALPHA, ETA)
    assert not found.excludes_zero and math.isfinite(found.high) == bounded


def test_arms_change_places_by_a_change_of_sign() -> None:
    there, back = effect(users(1), users(2), ALPHA, ETA), effect(users(2), users(1), ALPHA, ETA)
    assert 1 + there.relative == pytest.approx(1 / (1 + back.relative))
    assert 1 + there.low == pytest.approx(1 / (1 + back.high))
    assert there.p == pytest.approx(back.p)


def test_the_delta_method_gives_the_variance_that_is_seen() -> None:
    """The variance of log R over 2,000 drawn arms, against what each arm says of itself."""
    arms = [users(seed, 200) for seed in range(2_000)]
    seen = np.var([math.log(arm.ratio) for arm in arms])
    said = np.mean([influence(arm).var() / len(arm) for arm in arms])
    assert said == pytest.approx(seen, rel=0.1)


def test_items_of_a_user_do_not_count_as_independent() -> None:
    """Everybody's items told twenty times over are no more to go by."""
    once, other = users(3), users(4)
    often = ArmUsers(20 * once.numerators_U, 20 * once.denominators_U)
    assert effect(often, other, ALPHA, ETA).high == pytest.approx(effect(once, other, ALPHA, ETA).high)


def test_covariates_take_away_what_they_explain_and_no_effect() -> None:
    trial = simulate(np.random.default_rng(5), 4_000, 10, 0.1, before=10)
    plain = effect(trial.at(9, True), trial.at(9, False), ALPHA, ETA)
    less = effect(trial.at(9, True, True), trial.at(9, False, True), ALPHA, ETA)
    assert 0.3 < less.saved < 0.9 and plain.saved == 0
    assert less.low < 0.1 < less.high
    assert math.log1p(less.high) - math.log1p(less.low) < 0.9 * (
        math.log1p(plain.high) - math.log1p(plain.low)
    )


def test_covariates_correct_for_arms_that_began_apart() -> None:
    """Half of the users of one arm are replaced by keener ones: their past says so."""
    trial = simulate(np.random.default_rng(6), 40_000, 6, 0.0, before=20)
    keen = trial.before_U2[:, 0] > 0.45 * trial.before_U2[:, 1]
    trial.treated_U[keen & (np.arange(40_000) % 4 == 0)] = True
    plain = effect(trial.at(5, True), trial.at(5, False), ALPHA, ETA)
    less = effect(trial.at(5, True, True), trial.at(5, False, True), ALPHA, ETA)
    assert plain.relative > 0.02 and abs(less.relative) < 0.4 * plain.relative


@pytest.mark.parametrize("covariate", [0.0, 7.0])
def test_a_covariate_that_is_the_same_for_all_changes_nothing(covariate: float) -> None:
    ours, theirs = users(7), users(8)
    more = [
        ArmUsers(u.numerators_U, u.denominators_U, np.full((len(u), 2), covariate)) for u in (ours, theirs)
    ]
    assert effect(*more, ALPHA, ETA).high == pytest.approx(effect(ours, theirs, ALPHA, ETA).high)


def test_too_few_users_say_nothing() -> None:
    few = effect(users(1, 99), users(2, 400), ALPHA, ETA)
    assert few.p == 1 and few.low == -1 and few.high == math.inf and not few.excludes_zero
    never = ArmUsers(np.zeros(400), np.ones(400))
    assert not effect(never, users(2), ALPHA, ETA).excludes_zero
    assert not effect(never, never, ALPHA, ETA).excludes_zero


def test_arrays_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] users"):
        ArmUsers(np.zeros(2), np.zeros(3))


def test_the_interval_and_the_p_value_are_one_test() -> None:
    """D is at the bound exactly where 1/E is α."""
    for information in (10.0, 1e3, 1e6):
        at = radius(information, ALPHA, ETA)
        assert p_value(at, information, ETA) == pytest.approx(ALPHA)


@pytest.mark.parametrize("information", [10.0, 1e3, 1e6])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_mixture_is_one_over_alpha_at_the_radius(information: float, alpha: float) -> None:
    total = information + 70.0
    edge = radius(information, alpha, 70.0) * information
    mixture = math.sqrt(70.0 / total) * math.exp(edge**2 / (2 * total))
    assert mixture == pytest.approx(1 / alpha)


def test_eta_makes_the_interval_tightest_where_it_finds_what_it_is_to_find() -> None:
    eta = eta_of(0.02, ALPHA)
    around = np.geomspace(eta, 1e3 * eta, 4_000)
    there = min(around, key=lambda i: abs(radius(i, ALPHA, eta) - math.log1p(0.02)))
    others = [radius(there, ALPHA, eta * factor) for factor in (0.5, 0.8, 1.25, 2.0)]
    assert radius(there, ALPHA, eta) == pytest.approx(math.log1p(0.02), rel=1e-2)
    assert all(radius(there, ALPHA, eta) < other for other in others)
    with pytest.raises(ValueError, match="find is 0"):
        eta_of(0, ALPHA)


def test_holm_is_as_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_looking_after_every_batch_finds_nothing_where_nothing_is() -> None:
    """A test at a fixed sample size, looked at as often, is wrong far oftener than it says."""
    ever, peeked, runs = 0, 0, 100
    for seed in range(runs):
        trial = simulate(np.random.default_rng(seed), 800, 20)
        looks = [effect(trial.at(k, True), trial.at(k, False), ALPHA, ETA) for k in range(20)]
        ever += any(its.excludes_zero for its in looks)
        peeked += any(abs(math.log1p(its.relative)) > 1.96 * its.error for its in looks)
    assert ever <= 0.05 * runs < 0.08 * runs < peeked
