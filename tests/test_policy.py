"""Policies: the base with what the user's arms change, and nothing else."""

from dataclasses import replace

import pytest

from experiments.assignment import assign
from experiments.definition import Arm, Experiment
from experiments.policy import Policies, resolve
from recsys.config import PolicyConfig

BASE = PolicyConfig()
LIKES = Experiment(
    "likes", (Arm("control", 0.5), Arm("more", 0.5, {"weights.like": 9.0})), layer="ranking"
)
WILD = Experiment("wild", (Arm("on", 1.0, {"explore": 0.5}),), layer="mixing", traffic=0.5)
USERS = [f"u{i}" for i in range(300)]


def test_without_experiments_everyone_has_the_base() -> None:
    policy = resolve(BASE, [], "u1")
    assert policy.config == BASE and policy.arms == {} and policy.line == ""


def test_a_policy_is_the_base_with_the_overrides_of_the_arms() -> None:
    policies = Policies(BASE, [LIKES, WILD])
    seen = set()
    for user in USERS:
        policy, likes, wild = policies.resolve(user), assign(user, LIKES), assign(user, WILD)
        assert likes is not None
        assert policy.arms == {"likes": likes.name} | ({"wild": "on"} if wild else {})
        assert policy.config.weights["like"] == (9.0 if likes.name == "more" else 1.0)
        assert policy.config.explore == (0.5 if wild else BASE.explore)
        assert policy.config.sources == BASE.sources
        seen.add(policy.digest)
    assert len(seen) == 4
    assert BASE == PolicyConfig()


def test_users_of_the_same_arms_share_one_policy() -> None:
    policies = Policies(BASE, [LIKES, WILD])
    assert len({id(policies.resolve(user)) for user in USERS}) == 4


def test_the_digest_is_of_what_answers_not_of_who_asks() -> None:
    same = Experiment("aa", (Arm("a", 0.5), Arm("b", 0.5, {"explore": BASE.explore})))
    digests = {resolve(BASE, [same], user).digest for user in USERS}
    assert digests == {resolve(BASE, [], "anyone").digest}
    assert resolve(replace(BASE, explore=0.1), [], "u1").digest not in digests


def test_an_arm_may_name_its_line() -> None:
    on_b = Experiment("b", (Arm("b", 1.0, line="arm-b"),), layer="model")
    policy = resolve(BASE, [LIKES, on_b], "u1")
    assert policy.line == "arm-b" and policy.digest != resolve(BASE, [LIKES], "u1").digest


def test_an_override_that_does_not_fit_is_an_error() -> None:
    wrong = Experiment("w", (Arm("on", 1.0, {"weights.like": "much"}),))
    with pytest.raises(ValueError, match="Expected `float`"):
        resolve(BASE, [wrong], "u1")
