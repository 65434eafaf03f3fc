"""Target policy of an off-policy evaluation: the file of ``recsys counterfactual``.

    name: bolder
    about: does a warmer draw cost long views?
    overrides: {temperature: 0.05, weights.like: 2.0}   # as in an experiment's arm
    reward: {long_view: 1.0, like: 0.5}                 # or one label: long_view
    from: 2026-11-20                                    # optional, like until
    ranks: 5                                            # optional: evaluate the first ranks only
    state: state                                        # optional: state folder of the system

A log can evaluate another way to sample from the candidates that it has scores of. Overrides that would have
brought other candidates or scores are refused by name (``NOT_ESTIMABLE``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from experiments.assignment.definition import Arm, apply_overrides
from experiments.assignment.design import time_ms_of
from recsys.config.policy_config import MAX_LIST_LENGTH, PolicyConfig, check_weights
from recsys.config.yaml_with_lines import YamlWithLines

NOT_ESTIMABLE: Final = {
    "sources": "other sources bring other candidates, which were never scored for these requests",
    "trust_after": "another bound brings other items on trial among the candidates",
    "fixed": "an item that is fixed to a rank stands there always, where the log drew it by chance",
}
_LINE: Final = (
    "the scores of another line aren't on the log: propose it (`recsys propose`), or give it an arm of an "
    "experiment"
)
_KEYS: Final = {"name", "about", "overrides", "reward", "from", "until", "ranks", "state", "line"}


@dataclass(frozen=True)
class TargetPolicy:
    """Policy to evaluate. ``reward``: weights of labels. Times in milliseconds, ``until_ms`` excluded; 0: the
    log's beginning or end. ``ranks``: 0 for all."""

    name: str
    policy: PolicyConfig
    reward: dict[str, float]
    overrides: dict[str, Any] = field(default_factory=dict)
    from_ms: int = 0
    until_ms: int = 0
    ranks: int = 0


def read_target(text: str, file: object, policy: PolicyConfig, labels: Sequence[str]) -> TargetPolicy:
    """Reads a target policy from YAML text, as overrides of ``policy``. Raises YamlError with file, line and
    reason, also for overrides that no log can evaluate."""
    marked = YamlWithLines(text, file)
    values = marked.mapping(_KEYS)
    if "line" in values:
        raise marked.error(f"line is {values['line']!r}: {_LINE}", "line")
    name = values.get("name")
    if not isinstance(name, str) or not name:
        raise marked.error(f"name is {name!r}, expected a text", "name")
    times = {key: _time_ms(marked, values, key) for key in ("from", "until")}
    if times["until"] and times["until"] <= times["from"]:
        raise marked.error(f"until is {values['until']}, expected a time after from", "until")
    ranks = values.get("ranks", 0)
    if not isinstance(ranks, int) or isinstance(ranks, bool) or not 0 <= ranks <= MAX_LIST_LENGTH:
        raise marked.error(f"ranks is {ranks!r}, expected 1 to {MAX_LIST_LENGTH}, or 0 for all", "ranks")
    overrides = values.get("overrides") or {}
    return TargetPolicy(
        name,
        _overridden(marked, overrides, policy, labels),
        _reward(marked, values.get("reward"), labels),
        overrides,
        times["from"],
        times["until"],
        ranks,
    )


def _time_ms(marked: YamlWithLines, values: dict[str, Any], key: str) -> int:
    try:
        return time_ms_of(values[key]) if key in values else 0
    except ValueError as error:
        raise marked.error(f"{key}: {error}", key) from None


def _overridden(
    marked: YamlWithLines, overrides: Any, policy: PolicyConfig, labels: Sequence[str]
) -> PolicyConfig:
    if not isinstance(overrides, dict):
        text = f"overrides is {overrides!r}, expected values by dotted paths"
        raise marked.error(text, "overrides")
    for path, value in overrides.items():
        why = NOT_ESTIMABLE.get(str(path).split(".")[0])
        if why is not None:
            raise marked.error(f"{path} can't be judged from a log: {why}", "overrides", path)
        try:
            arm = Arm("target", 1.0, {path: value})
            check_weights(apply_overrides(policy, [arm], path), labels)
        except ValueError as error:
            raise marked.error(str(error), "overrides", path) from None
    return apply_overrides(policy, [Arm("target", 1.0, overrides)], "overrides")


def _reward(marked: YamlWithLines, reward: Any, labels: Sequence[str]) -> dict[str, float]:
    names = ", ".join(labels)
    weights = {reward: 1.0} if isinstance(reward, str) else reward
    if not isinstance(weights, dict) or not weights:
        text = f"reward is {reward!r}, expected a label or weights of labels: {names}"
        raise marked.error(text, "reward")
    for label, weight in weights.items():
        if label not in labels:
            raise marked.error(f"reward has {label!r}, expected labels: {names}", "reward", label)
        if not isinstance(weight, int | float) or isinstance(weight, bool):
            text = f"reward of {label} is {weight!r}, expected a number"
            raise marked.error(text, "reward", label)
    return {label: float(weight) for label, weight in weights.items()}
