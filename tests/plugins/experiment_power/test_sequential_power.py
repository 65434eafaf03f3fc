"""Power: as worked out for one look, and as it is found in simulated experiments with many."""

from statistics import NormalDist

import numpy as np
import pytest

from benchmarks.studies.experiments.trial_world import simulate
from experiments.statistics.effect import effect, eta_of, radius
from plugins.experiment_power.command import power_from_numbers
from plugins.experiment_power.sequential_power import SequentialPower, covariance, single_visit_covariance

ALPHA = 0.05
ETA = eta_of(0.1, ALPHA)


def test_one_look_is_the_normal_distribution() -> None:
    variance, users = 0.5, (400, 600)
    information = 1 / (variance * (1 / 400 + 1 / 600))
    sigmas = np.log1p(0.2) - radius(information, ALPHA, ETA)
    expected = NormalDist().cdf(sigmas * information**0.5)
    found = SequentialPower(np.array([[variance]]), ALPHA, ETA).power(users, 0.2)
    assert found[0] == pytest.approx(expected, abs=0.01)


def test_without_an_effect_power_is_the_chance_of_a_false_alarm() -> None:
    looks = SequentialPower(single_visit_covariance(0.5, 50), ALPHA, ETA).power((5_000, 5_000), 0.0)
    assert 0 < looks[-1] < ALPHA and (np.diff(looks) >= 0).all()


def test_users_who_come_once_help_at_each_look_and_those_who_stay_do_not() -> None:
    """Of the same variance at the end: where nothing new comes, looking again finds nothing new."""
    users = (2_000, 2_000)
    once = SequentialPower(single_visit_covariance(0.5, 30), ALPHA, ETA).power(users, 0.07)
    stays = SequentialPower(np.full((30, 30), 0.5), ALPHA, ETA).power(users, 0.07)
    assert once[-1] > stays[-1] + 0.02 and stays[0] == pytest.approx(stays[-1])


def test_what_is_needed_has_the_power_that_was_wanted() -> None:
    looks = SequentialPower(single_visit_covariance(0.5, 10), ALPHA, ETA)
    needed = looks.users_needed((0.5, 0.5), 0.05)
    halves = (needed / 2, needed / 2)
    assert looks.power(halves, 0.05)[-1] == pytest.approx(0.8, abs=0.01)
    assert looks.smallest_effect(halves) == pytest.approx(0.05, rel=0.02)
    assert looks.users_needed((0.9, 0.1), 0.05) > 2 * needed
    # A report has no bounds for fewer than 100 users in an arm, however large the effect.
    assert looks.users_needed((0.9, 0.1), 3.0) == 1_000
    rare = SequentialPower(single_visit_covariance(49.0, 3), ALPHA, ETA)  # one of 50 users converts
    assert rare.users_needed((0.5, 0.5), 30.0) == 2 * 20 * 50
    assert looks.users_needed((0.5, 0.5), -0.05) == pytest.approx(needed, rel=0.1)


def test_the_promise_is_kept_by_users_who_come_again() -> None:
    """Covariance from a pilot of other users; 12 % found in 300 experiments as often as was said."""
    looks, users, runs = 8, 1_000, 300
    pilot = simulate(np.random.default_rng(99), 8_000, looks)
    seen = covariance(pilot.numerators_TU.T, pilot.denominators_TU.T)
    said = SequentialPower(seen, ALPHA, ETA).power((users / 2, users / 2), 0.12)[-1]
    found = 0
    for seed in range(runs):
        trial = simulate(np.random.default_rng(seed), users, looks, 0.12)
        found += any(effect(trial.at(k, True), trial.at(k, False), ALPHA, ETA).low > 0 for k in range(looks))
    assert 0.4 < said < 0.95 and found / runs == pytest.approx(said, abs=0.08)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: SequentialPower(single_visit_covariance(1, 2), ALPHA, ETA).users_needed((0.5, 0.5), 0.0),
            "effect is 0",
        ),
        (
            lambda: SequentialPower(single_visit_covariance(1, 2), ALPHA, ETA).smallest_effect((9, 9), 1.0),
            "power is 1",
        ),
        (lambda: SequentialPower(np.zeros((2, 2)), ALPHA, ETA), "no variance"),
        (lambda: covariance(np.zeros((3, 2)), np.ones((3, 2))), "nothing was counted"),
    ],
)
def test_what_makes_no_sense_is_refused(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_users_too_few_for_bounds_have_no_power() -> None:
    """A large effect on a metric that hardly varies: found by the first users for whom there are bounds."""
    (row,) = power_from_numbers(10, 1, 20, 14, 0.5, 0.8)["metrics"]
    assert (row["users_needed"], row["days_needed"], row["power_there"]) == (200, 10, 1.0)
    (row,) = power_from_numbers(10, 1, 20, 9, 0.5, 0.8)["metrics"]
    assert (row["users_needed"], row["days_needed"], row["power_there"]) == (200, None, 0.0)
