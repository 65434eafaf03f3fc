"""What the file of `recsys counterfactual` may say, and what no log can judge."""

import re
from pathlib import Path

import pytest

from plugins.off_policy.target_policy import NOT_ESTIMABLE, read_target
from recsys.config.policy_config import PolicyConfig
from recsys.config.yaml_with_lines import YamlError
from tests.support.paths import ROOT

LABELS = ("long_view", "click", "like", "hide", "follow", "comment", "share")
EXAMPLES = sorted((ROOT / "experiments" / "policies").glob("*.yaml"))


def read(text: str):
    return read_target(text, "p.yaml", PolicyConfig(), LABELS)


def test_a_target_is_the_policy_with_its_overrides() -> None:
    its = read(
        "name: bolder\noverrides: {temperature: 0.05, weights.like: 2}\nreward: {long_view: 1, like: 0.5}\n"
        "from: 2026-11-20\nuntil: 2026-11-21T00:00Z\nranks: 5\nstate: elsewhere\n"
    )
    assert its.policy.temperature == 0.05 and its.policy.weights["like"] == 2.0
    assert its.policy.weights["share"] == PolicyConfig().weights["share"]
    assert its.reward == {"long_view": 1.0, "like": 0.5}
    assert its.until_ms - its.from_ms == 86_400_000 and its.ranks == 5


def test_one_label_is_a_reward() -> None:
    its = read("name: same\nreward: click\n")
    assert its.reward == {"click": 1.0} and its.policy == PolicyConfig() and not its.until_ms


@pytest.mark.parametrize("name", sorted(NOT_ESTIMABLE))
def test_what_brings_other_candidates_is_refused_by_name(name: str) -> None:
    tried = {"sources": ("sources.fresh", 9), "trust_after": (name, 9), "fixed": ("fixed.0", "v1")}
    path, value = tried[name]
    with pytest.raises(YamlError, match=rf"p.yaml:2: {path} can't be judged from a log"):
        read(f"name: x\noverrides: {{{path}: {value}}}\nreward: click\n")


@pytest.mark.parametrize(
    "line, said",
    [
        ("line: cand-3", "scores of another line aren't on the log"),
        ("overrides: {temperature: -1}", "policy.temperature"),
        ("overrides: {nonsense: 1}", "there is no 'nonsense'"),
        ("overrides: 7", "expected values by dotted paths"),
        ("reward: nonsense", "expected labels"),
        ("reward: {click: much}", "expected a number"),
        ("reward: {}", "expected a label or weights"),
        ("ranks: 1000", "expected 1 to 100"),
        ("from: soon", "expected one like 2026"),
        ("until: 2000-01-01\nfrom: 2001-01-01", "a time after from"),
        ("until: 2001-01-01\nfrom: 2001-01-01", "a time after from"),
        ("other: 1", "unknown key 'other'"),
        ("name: ''", "expected a text"),
    ],
)
def test_every_mistake_is_told_with_its_line(line: str, said: str) -> None:
    key = line.partition(":")[0]
    rest = {"name": "x", "reward": "click"}
    rest.pop(key, None)
    with pytest.raises(YamlError, match=said) as told:
        read(line + "\n" + "".join(f"{name}: {value}\n" for name, value in rest.items()))
    assert told.value.line == 1


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_shipped_examples_can_be_read(file: Path) -> None:
    assert read_target(file.read_text(), file, PolicyConfig(), LABELS).name


def test_the_documented_example_can_be_read() -> None:
    page = (ROOT / "docs" / "explanation" / "counterfactual.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert read(text).ranks == 5 and EXAMPLES
