"""Assignment: uniform, stable, and independent between layers and experiments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from experiments.assignment.definition import Arm, Experiment, read_experiment, read_experiments
from experiments.assignment.design import Ramp
from experiments.assignment.policy import assign
from recsys.config.policy_config import PolicyConfig
from recsys.config.yaml_with_lines import YamlError
from recsys.features.feature_set_file import FEED_SCHEMA
from tests.support.paths import ROOT

# Each p-value is that of one fixed draw per example; hypothesis draws dozens, so the bound is far out.
UNLIKELY = 1e-6
USERS = [f"u{i}" for i in range(2000)]
NAMES = st.text("abcdefg_1", min_size=1, max_size=8).map("n{}".format)


def halves(name: str = "e", **more: object) -> Experiment:
    return Experiment(name, (Arm("control", 0.5), Arm("treatment", 0.5)), **more)  # type: ignore[arg-type]


def names(experiment: Experiment) -> list[str]:
    arms = (assign(user, experiment) for user in USERS)
    return [arm.name if arm else "out" for arm in arms]


@settings(max_examples=12, deadline=None)
@given(NAMES, NAMES, st.lists(st.integers(1, 20), min_size=2, max_size=5))
def test_arms_get_their_shares(name: str, salt: str, sizes: list[int]) -> None:
    arms = tuple(Arm(f"a{i}", size / sum(sizes)) for i, size in enumerate(sizes))
    found = names(Experiment(name, arms, salt=salt))
    counts = [found.count(arm.name) for arm in arms]
    assert sum(counts) == len(USERS)
    assert chisquare(counts, [arm.share * len(USERS) for arm in arms]).pvalue > UNLIKELY


@settings(max_examples=12, deadline=None)
@given(NAMES, NAMES)
def test_experiments_and_layers_are_independent(name: str, layer: str) -> None:
    one, other = halves(name, layer=layer), halves(name + "2", layer=layer + "2", traffic=0.5)
    resalted = halves(name, layer=layer, salt="again")
    for rival in (other, resalted):
        pairs = list(zip(names(one), names(rival), strict=True))
        rows, columns = sorted({p[0] for p in pairs}), sorted({p[1] for p in pairs})
        table = np.array([[pairs.count((row, column)) for column in columns] for row in rows])
        assert table.shape[0] == 2 and chi2_contingency(table).pvalue > UNLIKELY


@given(st.integers(-(2**63), 2**63 - 1), NAMES)
def test_the_same_user_stays_where_they_are(user_id: int, name: str) -> None:
    arm = assign(user_id, halves(name))
    assert arm == assign(user_id, halves(name)) == assign(str(user_id), halves(name))


def test_assignments_are_those_of_the_first_release() -> None:
    """Pinned: a change of the hash would move every running experiment's users."""
    assert "".join(n[0] for n in names(halves("pinned"))[:16]) == "ccttcctttcttcttt"


@settings(max_examples=10, deadline=None)
@given(NAMES, st.floats(0.1, 0.9))
def test_traffic_only_grows(name: str, traffic: float) -> None:
    small = names(halves(name, traffic=traffic / 2))
    large = names(halves(name, traffic=traffic))
    assert all(a in ("out", b) for a, b in zip(small, large, strict=True))
    share = 1 - large.count("out") / len(USERS)
    assert share == pytest.approx(traffic, abs=0.06)


def test_experiments_side_by_side_in_a_layer_share_nobody() -> None:
    left, right = names(halves("l", traffic=0.5)), names(halves("r", traffic=0.5, offset=0.5))
    assert all((a == "out") != (b == "out") for a, b in zip(left, right, strict=True))


def test_traffic_ends_within_the_layer() -> None:
    for offset in (-0.1, 0.6):
        with pytest.raises(ValueError, match="offset is"):
            halves(traffic=0.5, offset=offset)
    assert halves(traffic=0.5, offset=0.5).offset == 0.5
    assert halves(traffic=0.9, offset=0.1).offset == 0.1  # sums a little above 1 are rounding


GOOD = """\
name: greedy
layer: ranking
arms:
  control: {share: 0.5}
  treatment:
    share: 0.5
    overrides:
      explore: 0.0
      weights.like: 2
"""


def test_a_file_is_an_experiment() -> None:
    found = read_experiment(GOOD, "g.yaml", PolicyConfig())
    assert found.arms[1] == Arm("treatment", 0.5, {"explore": 0.0, "weights.like": 2})
    assert (found.name, found.layer, found.traffic) == ("greedy", "ranking", 1.0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("layer:", "layr:", r"g.yaml:2: unknown key 'layr'; there are .*layer"),
        ("name: greedy\n", "", r"g.yaml:1: the key 'name' is required"),
        ("greedy", "Big One", r"g.yaml:1: name is 'Big One', expected"),
        ("{share: 0.5}", "{share: 0.6}", r"g.yaml:\d: the sum of the arms' shares is 1.1"),
        ("{share: 0.5}", "{share: half}", r"g.yaml:4: .*float"),
        ("{share: 0.5}", "{shares: 0.5}", r"g.yaml:4: unknown key 'shares'"),
        ("  control: {share: 0.5}", "  control:", r"g.yaml:4: arm 'control' is empty"),
        ("explore: 0.0", "explored: 0.0", r"g.yaml:8: explored: there is no 'explored'"),
        ("explore: 0.0", "explore: 7", r"g.yaml:8: .*explore is 7.*0 to 1"),
        ("weights.like: 2", "weights.like: much", r"g.yaml:9: weights.like: "),
        ("weights.like: 2", "weights.lik: 2", r"g.yaml:9: policy.weights.lik is 2.0, .*long_view"),
        ("weights.like: 2", "weights: {lik: 2}", r"g.yaml:9: policy.weights.lik is 2.0, .*'watch'"),
        ("weights.like: 2", "sources.vectr: 2", r"g.yaml:9: policy.sources.vectr is 2, .*vector"),
        ("weights.like: 2", "sources.near@1: 2", r"g.yaml:9: there is no plug-in 'near' of the group"),
        ("weights.like: 2", "fixed.first: v1", r"g.yaml:9: policy.fixed.first is 'v1', .*0 to 99"),
        ("weights.like: 2", "fixed.1: true", r"g.yaml:9: policy.fixed.1 is True, .*item's id"),
        ("explore: 0.0", "fixed.3: v1\n      fixed.1: v1", r"g.yaml:7: policy.fixed.3 is 'v1', .*one rank"),
        ("layer: ranking", "traffic: 2", r"g.yaml:2: traffic is 2"),
        ("layer: ranking", "layer: [", r"g.yaml:\d: "),
        ("treatment:", "control:", r"g.yaml:5: the key 'control' is repeated"),
    ],
)
def test_a_mistake_is_told_with_its_line(old: str, new: str, says: str) -> None:
    with pytest.raises(YamlError, match=says):
        read_experiment(GOOD.replace(old, new), "g.yaml", PolicyConfig(), FEED_SCHEMA.labels)


def test_a_weight_is_of_a_label_that_the_schema_has() -> None:
    found = read_experiment(GOOD, "g.yaml", PolicyConfig(), labels=("long_view", "like"))
    assert found.arms[1].overrides["weights.like"] == 2
    with pytest.raises(YamlError, match=r"g.yaml:9: policy.weights.like is 2.0, .*\(long_view, click\)"):
        read_experiments({"g.yaml": GOOD}, PolicyConfig(), labels=("long_view", "click"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "is there twice"),
        ({"greedy": "other"}, r"shares users of the layer 'ranking' with 'greedy'"),
        ({"greedy": "other", "ranking": "looks"}, r"both change 'explore', in different layers"),
        ({"greedy": "other", "ranking": "looks", "explore: 0.0": "weights: {}"}, "both change"),
        (
            {"greedy": "other", "ranking": "looks", "explore: 0.0": "fixed.1: v1", "weights.like: 2": ""},
            "both change 'fixed'",
        ),
    ],
)
def test_experiments_that_do_not_fit_together_are_refused(change: dict, says: str) -> None:
    text = GOOD
    for old, new in change.items():
        text = text.replace(old, new)
    with pytest.raises(YamlError, match=f"h.yaml:1: .*{says}"):
        other = GOOD.replace("explore: 0.0", "explore: 0.0\n      fixed.0: v1")
        read_experiments({"g.yaml": other, "h.yaml": text}, PolicyConfig())


def test_the_shipped_experiments_are_read() -> None:
    folder = ROOT / "experiments" / "configs"
    texts = {file.name: file.read_text("utf-8") for file in folder.glob("*.yaml")}
    for labels in (None, ("click",)):  # it runs on any schema
        assert [e.name for e in read_experiments(texts, PolicyConfig(), labels)] == ["default"]


def test_an_experiment_whose_arms_all_train_leaves_users_to_live() -> None:
    text = """
name: learners
traffic: TRAFFIC
arms: {a: {share: 0.5, trains: weighted}, b: {share: 0.5, trains: all}}
"""
    with pytest.raises(YamlError, match="learners.yaml:3: traffic is 1, expected at most 0.9 where"):
        read_experiment(text.replace("TRAFFIC", "1.0"), "learners.yaml", PolicyConfig())
    assert read_experiment(text.replace("TRAFFIC", "0.9"), "l.yaml", PolicyConfig()).trains
    with pytest.raises(ValueError, match="at most 64 letters in the names"):
        Experiment("e" * 40, (Arm("a" * 40, 1.0, trains="all"),), traffic=0.5)
    with pytest.raises(ValueError, match="arm a: trains is 'some', expected one of weighted"):
        Arm("a", 1.0, trains="some")


def test_neighbours_in_a_layer_may_touch_and_not_overlap() -> None:
    other = GOOD.replace("greedy", "other") + "traffic: 0.5\noffset: 0.5\n"
    touching = {"a": GOOD + "traffic: 0.5\n", "b": other}
    assert len(read_experiments(touching, PolicyConfig())) == 2
    with pytest.raises(YamlError, match="shares users of the layer"):
        read_experiments(touching | {"a": GOOD + "traffic: 0.51\n"}, PolicyConfig())


def test_a_ramp_has_shares_that_grow_hours_and_users() -> None:
    for wrong in ({"users": -1}, {"hours": 0.0}, {"steps": (0.2, 0.1)}, {"steps": (0.0,)}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            Ramp(**wrong)  # type: ignore[arg-type]
    assert Ramp((0.1, 0.2), 1.0, 0).users == 0
