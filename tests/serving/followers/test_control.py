"""A replica follows `control`: the live line, its model, the policies of experiments."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.assignment.definition import Experiment
from experiments.assignment.policy import Policies
from experiments.promotion.epoch_model import with_size
from experiments.statistics.revision import running
from recsys.config.policy_config import PolicyConfig
from recsys.events.control_records import Candidate, Experiments, ExperimentState, Live, ModelSize
from recsys.events.records import CONTROL
from serving.followers import control
from serving.variants.model_variant import ModelVariant
from tests.support.serving.followed_log import FEATURES, NOW_MS, FollowedLog

EXPERIMENT = """
name: more
traffic: 1.0
arms:
  control: {share: 0.5}
  treatment: {share: 0.5, overrides: {explore: 0.5}}
"""


@pytest.fixture
def fixture(tmp_path: Path) -> FollowedLog:
    return FollowedLog(tmp_path)


def test_the_live_pointer_is_followed(fixture: FollowedLog) -> None:
    fixture.step(1, 1.0)
    fixture.turn()
    fixture.snapshot(1, 7.0, epoch=1)
    fixture.step(2, 8.0, epoch=1)
    fixture.put(CONTROL, Live(line="main", epoch=1))
    fixture.turn()
    assert fixture.live.replica.version == ("main", 1, 2) and fixture.row() == 8.0
    fixture.snapshot(5, 5.0, line="cand-1")
    fixture.put(CONTROL, Live(line="cand-1", epoch=0))
    fixture.turn()
    assert fixture.live.replica.version == ("cand-1", 0, 5) and fixture.row() == 5.0


def test_the_model_is_that_of_the_epoch_and_of_the_canary(fixture: FollowedLog) -> None:
    """Answers go on from the old one until the new one is applied; a restarted replica has the new one."""
    fixture.step(1, 1.0)
    fixture.turn()
    size = ModelSize(dim=4, hidden=(8,))
    teacher, fixture.config = fixture.config, with_size(fixture.config, size)
    fixture.snapshot(1, 7.0, epoch=1)
    fixture.snapshot(3, 9.0, line="small")
    fixture.step(2, 8.0, epoch=1)
    fixture.put(CONTROL, Candidate(line="small", registry="r", size=size))
    fixture.put(CONTROL, Live(line="main", epoch=1, candidate="small", size=size))
    fixture.config, student = teacher, fixture.config.model
    before = fixture.live.replica.model
    batch = fixture.live.followers.read()
    assert fixture.live.replica.model is before and fixture.row() == 1.0
    fixture.live.followers.apply(batch)
    live = fixture.live.control
    canary = ModelVariant(teacher, fixture.log, FEATURES, lambda: NOW_MS, line="small", control=live)
    for variant, row in ((fixture.live, 8.0), (fixture.another(), 8.0), (canary, 9.0)):
        fixture.turn(variant)
        assert variant.replica.model.config == student and fixture.row(variant) == row  # type: ignore[attr-defined]
        assert variant.replica.rows["features"].config.dim == size.dim + 1

    fixture.snapshot(1, 2.0, epoch=2)
    fixture.put(CONTROL, Live(line="main", epoch=2, parent_epoch=0))
    fixture.turn()
    assert fixture.live.replica.model.config == teacher.model and fixture.row() == 2.0  # type: ignore[attr-defined]


def test_experiments_change_policies_and_bad_ones_do_not(fixture: FollowedLog) -> None:
    fixture.put(CONTROL, Experiments(revision=1, configs={"more": EXPERIMENT}))
    fixture.turn()
    explores = {fixture.live.control.policies.resolve(f"u{i}").config.explore for i in range(50)}
    assert explores == {0.05, 0.5}
    good = fixture.live.control.policies
    fixture.put(CONTROL, Experiments(revision=2, configs={"more": "arms: 7"}))
    fixture.turn()
    assert fixture.live.control.policies is good and fixture.live.followers.unreadable == 1
    unknown = EXPERIMENT.replace("explore", "weights.skip")  # an engagement, and no label here
    fixture.put(CONTROL, Experiments(revision=3, configs={"more": unknown}))
    fixture.turn()
    assert fixture.live.control.policies is good and fixture.live.followers.unreadable == 2
    fixture.put(CONTROL, Experiments(revision=4))
    fixture.turn()
    assert isinstance(fixture.live.control.policies, Policies)
    assert fixture.live.control.policies.resolve("u1").arms == {}


def test_of_many_revisions_only_the_newest_valid_one_is_parsed(
    fixture: FollowedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = list[int]()

    def parse(revision: Experiments, *others: Any) -> tuple[Experiment, ...]:
        parsed.append(revision.revision)
        return running(revision, *others)

    monkeypatch.setattr(control, "running", parse)
    for number, text in enumerate([EXPERIMENT] * 50 + ["arms: 7"], 1):
        fixture.put(CONTROL, Experiments(revision=number, configs={"more": text}))
    fixture.turn()
    assert parsed == [51, 50] and fixture.live.followers.unreadable == 1
    assert {fixture.live.control.policies.resolve(f"u{i}").config.explore for i in range(50)} == {0.05, 0.5}


def test_an_arm_that_doesnt_fit_a_surface_is_refused_before_a_request(fixture: FollowedLog) -> None:
    fixture.config = replace(fixture.config, surfaces={"home": {"fixed": {0: "v7"}}})
    variant = fixture.another()
    before, pins = variant.control.policies, EXPERIMENT.replace("explore: 0.5", "fixed.1: v7")
    fixture.put(CONTROL, Experiments(revision=1, configs={"more": pins}))
    fixture.turn(variant)
    assert variant.control.policies is before and variant.followers.unreadable == 1


def test_an_experiment_grows_and_ends_between_two_requests(fixture: FollowedLog) -> None:
    given = []
    for stand in (
        ExperimentState(traffic=0.1),
        ExperimentState(traffic=0.5),
        ExperimentState(state="stopped"),
    ):
        said = Experiments(revision=1, configs={"more": EXPERIMENT}, states={"more": stand})
        fixture.put(CONTROL, said)
        fixture.turn()
        users = [f"u{n}" for n in range(300)]
        given.append({u for u in users if fixture.live.control.policies.resolve(u).arms})
    assert 10 < len(given[0]) < 50 < 120 < len(given[1]) < 180
    assert given[0] < given[1] and given[2] == set()


def test_a_weight_of_what_is_not_predicted_is_refused_at_the_start(fixture: FollowedLog) -> None:
    weights = fixture.config.policy.weights | {"skip": -1.0}
    fixture.config = replace(fixture.config, policy=PolicyConfig(weights=weights))
    with pytest.raises(ValueError, match=r"policy.weights.skip is -1.0, expected .*long_view.*'watch'"):
        fixture.another()
