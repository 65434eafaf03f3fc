"""Policies: the base with what the user's arms change, and nothing else."""

from dataclasses import replace

import pytest

from experiments.assignment.definition import Arm, Experiment, apply_overrides, read_experiments
from experiments.assignment.policy import Policies, assign
from recsys.config.policy_config import PolicyConfig, Rule, check_rules
from recsys.config.system_config import digest
from tests.support.paths import ROOT

BASE = PolicyConfig()
LIKES = Experiment("likes", (Arm("control", 0.5), Arm("more", 0.5, {"weights.like": 9.0})), layer="ranking")
WILD = Experiment("wild", (Arm("on", 1.0, {"explore": 0.5}),), layer="mixing", traffic=0.5)
USERS = [f"u{i}" for i in range(300)]


def test_without_experiments_everyone_has_the_base() -> None:
    policy = Policies(BASE).resolve("u1")
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
    digests = {Policies(BASE, [same]).resolve(user).digest for user in USERS}
    assert digests == {Policies(BASE).resolve("anyone").digest}
    assert Policies(replace(BASE, explore=0.1)).resolve("u1").digest not in digests


def test_an_arm_may_train_a_line_of_its_own() -> None:
    on_b = Experiment("b", (Arm("b", 1.0, trains="weighted"),), layer="model")
    policy = Policies(BASE, [LIKES, on_b]).resolve("u1")
    assert policy.line == "b.b" and policy.digest != Policies(BASE, [LIKES]).resolve("u1").digest


def test_an_override_that_does_not_fit_is_an_error() -> None:
    wrong = Experiment("w", (Arm("on", 1.0, {"weights.like": "much"}),))
    with pytest.raises(ValueError, match="Expected `float`"):
        Policies(BASE, [wrong]).resolve("u1")


def test_fixed_slots_are_overridden_by_rank() -> None:
    base = PolicyConfig(fixed={0: "v1", 2: "v2"})
    arm = Experiment("pin", (Arm("on", 1.0, {"fixed.2": "v9", "fixed.4": 7}),))
    assert Policies(base, [arm]).resolve("u1").config.fixed == {0: "v1", 2: "v9", 4: 7}
    none = Experiment("none", (Arm("on", 1.0, {"fixed": {}}),))
    assert Policies(base, [none]).resolve("u1").config.fixed == {}
    assert Policies(base).resolve("u1").digest != Policies(BASE).resolve("u1").digest


RULE = {"field": "author", "value": "a1", "do": "boost", "amount": 0.5}


def test_an_arm_may_bring_rules_and_the_digest_knows_them() -> None:
    changed = apply_overrides(BASE, [Arm("a", 1.0, {"rules": [RULE]})])
    assert changed.rules == (Rule("author", "a1", "boost", 0.5),)
    assert digest(changed) != digest(BASE)
    check_rules(changed, ("author", "tags"))
    with pytest.raises(ValueError, match="field is 'author', expected .* tags"):
        check_rules(changed, ("tags",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"do": "hide"}, "do is 'hide', expected one of boost, bury"), ({"field": ""}, "name of an"),
     ({"amount": -1.0}, "amount is -1.0"), ({"do": "limit", "amount": 1.5}, "a whole number"),
     ({"do": "vary", "value": "*", "amount": 0.5}, "a whole number"),
     ({"do": "vary", "value": "*", "amount": 0.0}, "1 item or more"),
     ({"do": "vary", "amount": 4}, "value is 'a1', expected '\\*'"), ({"value": None}, "policy.rules is")],
)  # fmt: skip
def test_a_rule_that_says_nothing_sound_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PolicyConfig(rules=(RULE | changes,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"quota": 1.1}, {"quota": -0.1}, {"diversity": -1}, {"not_interested": -1}, {"trust_after": -1}],
)
def test_shares_and_weights_of_the_stages_are_checked(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"policy.{next(iter(changes))}"):
        PolicyConfig(**changes)  # type: ignore[arg-type]


def test_a_surface_has_the_base_with_its_overrides_and_then_those_of_arms() -> None:
    surfaces = {"home": {"weights.like": 3.0, "explore": 0.2, "sources": {"popular": 50}}}
    policies = Policies(BASE, [LIKES], surfaces)
    by_arm = {assign(user, LIKES).name: user for user in USERS}  # type: ignore[union-attr]
    home = {arm: policies.resolve(user, "home") for arm, user in by_arm.items()}
    assert home["control"].config.weights == BASE.weights | {"like": 3.0}
    assert home["more"].config.weights["like"] == 9.0 and home["more"].config.explore == 0.2
    assert home["control"].config.sources == {"popular": 50}
    assert policies.resolve(by_arm["control"], "elsewhere").config == BASE
    digests = {policies.resolve(user, name).digest for user in USERS for name in ("home", "feed")}
    assert len(digests) == 4 and home["more"].arms == {"likes": "more"}
    assert policies.bases == {"": BASE, "home": home["control"].config}


@pytest.mark.parametrize("changes", [{"weights.like": "much"}, {"explor": 1}, {"sources": {"nothing": 3}}])
def test_a_surface_whose_overrides_dont_fit_is_an_error(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"^surfaces\.home: "):
        Policies(BASE, (), {"home": changes})


@pytest.mark.parametrize("n", [0, 101, "7", 2.0, True, None])
def test_a_surface_has_a_number_of_items_that_a_list_may_have(n: object) -> None:
    with pytest.raises(ValueError, match=r"surfaces\.home\.n is .*, expected 1 to 100 items"):
        Policies(BASE, (), {"home": {"n": n}})
    assert Policies(BASE, (), {"home": {"n": 7}, "feed": {}}).lengths == {"home": 7, "feed": 10}


def test_a_surface_has_a_name() -> None:
    """An empty one would change the base."""
    with pytest.raises(ValueError, match="surfaces has the name ''"):
        Policies(BASE, (), {"": {"explore": 0.9}})


def test_the_shipped_experiments_leave_the_configured_policy_and_all_its_keys() -> None:
    base, surfaces = PolicyConfig(explore=0.2), {"detail": {"explore": 0}}
    texts = {file.name: file.read_text() for file in (ROOT / "experiments/configs").glob("*.yaml")}
    policies = Policies(base, read_experiments(texts, base), surfaces)
    for user in USERS[:20]:
        assert policies.resolve(user).arms["default"] in ("control", "treatment")
        assert policies.resolve(user).config == base
        assert policies.resolve(user, "detail").config.explore == 0
    more = "name: more\nlayer: mixing\narms: {a: {share: 1.0, overrides: {explore: 0.1}}}\n"
    assert len(read_experiments({**texts, "more.yaml": more}, base)) == len(texts) + 1


def test_an_arm_that_doesnt_fit_a_surface_is_an_error_before_any_request() -> None:
    """Each is valid alone; together one item is at two ranks."""
    surfaces = {"home": {"fixed": {0: "v7"}}, "detail": {"fixed": {0: "v8"}}}
    pin = Experiment("pin", (Arm("control", 0.5), Arm("pinned", 0.5, {"fixed.1": "v7"})))
    with pytest.raises(ValueError, match=r"^pin: arm pinned on the surface 'home': .*'v7'"):
        Policies(BASE, [pin], surfaces)
    del surfaces["home"]
    assert Policies(BASE, [pin], surfaces).bases["detail"].fixed == {0: "v8"}
