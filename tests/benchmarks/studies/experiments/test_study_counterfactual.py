"""The studies' world is the simulated one, and both studies say what they measure, small."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.studies.experiments import study_counterfactual as study
from benchmarks.studies.experiments import study_interleaving as rivals
from benchmarks.studies.experiments.list_world import ListWorld, Shown
from examples.short_video.world import World
from plugins.off_policy.estimates import estimates
from runtime.cli.main import app


@pytest.fixture(scope="module")
def world() -> ListWorld:
    return ListWorld(3, users=20, items=40, candidates=15, ranks=4)


def test_people_watch_as_the_world_says(world: ListWorld) -> None:
    its, now_ms = World(3, 20, 40), World(3, 20, 40).start_ms + 3_600_000
    shown = Shown(5, np.arange(40), np.array([7, 2, 30]))
    told = [its.true_long_view("u5", f"w{i}", now_ms, rank) for rank, i in enumerate((7, 2, 30))]
    assert world.liked_R(shown) == pytest.approx(told)
    draw = np.random.default_rng(0)
    watched = np.mean([world.watched_R(shown, draw).sum() for _ in range(4_000)])
    assert watched == pytest.approx(world.worth(shown), abs=0.06)


def test_the_logging_policy_judged_by_its_own_log_is_what_it_earned(world: ListWorld) -> None:
    policy = study.logging_policy()
    lists = study.logged(world, {"same": policy, "colder": study.policies()["colder"]}, 1, 30)
    assert lists["same"].ratios_LR == pytest.approx(1)
    assert not lists["colder"].ratios_LR == pytest.approx(1)
    for its in estimates(lists["same"])[:2]:
        assert its.value == pytest.approx(lists["same"].rewards_LR.sum(1).mean())
    assert (lists["same"].unsupported_LR == 0).all()


def test_the_study_tells_every_estimator_of_every_policy(world: ListWorld) -> None:
    found = study.measure(3, 20, world)
    assert set(found["targets"]) == set(study.TARGETS)
    for its in found["targets"].values():
        assert its["ess"] > 5 and 0.5 < its["true"] < 4
        for name in ("ips", "snips", "dr", "sndr"):
            assert 0 <= its[name]["coverage"] <= 1 and its[name]["width"] > 0
            assert abs(its[name]["bias"]) < 1.5


def test_a_ranker_against_itself_earns_alike_and_a_better_one_more(world: ListWorld) -> None:
    usual = rivals.Ranker(study.logging_policy(), world.predicted_UI)
    noisy = rivals.Ranker(study.logging_policy(), world.worse_model(4.0))
    equal, by_picks = rivals.interleaved_pools(world, usual, usual, 60, 3, 0)
    assert equal.ratio == pytest.approx(1) and equal.users.ratio == pytest.approx(1)
    assert 1e-6 < abs(by_picks.users.ratio - 1) < 0.3  # by picks the coins are in it
    better, by_picks = rivals.interleaved_pools(world, noisy, usual, 60, 3, 0)
    assert better.ratio > 1.15 and rivals._spread(better) < rivals._spread(by_picks)
    assert (
        rivals.single_arm_pool(world, usual, 60, 3, 0).ratio
        > rivals.single_arm_pool(world, noisy, 60, 3, 0).ratio
    )
    found = rivals.compare(world, noisy, usual, 60, 3, 50)
    assert found["interleaved_lists"] <= found["ab_lists"] and found["interleaved_power"] > 0.5


@pytest.mark.parametrize("name", ["counterfactual", "interleaving"])
def test_numbers_that_make_no_sense_are_refused(name: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["study", name, "--users", "1"])
    assert told.exit_code == 2 and "--users is 1" in told.stderr


def test_users_needed_are_those_of_the_textbook() -> None:
    # Two-sided 5 %, power 0.8: (1.96 + 0.8416)² = 7.849 times the variance over the difference squared.
    assert rivals._users_needed(0.1, 2.0) == pytest.approx(7.849 * 200, rel=1e-3)
    assert json.dumps(study.LOGGED)
