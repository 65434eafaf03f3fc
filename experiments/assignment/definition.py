"""Experiment definition and its YAML file; errors name file and line.

A file is one experiment::

    name: more_exploration
    hypothesis: users who see more new items stay longer
    layer: exploration        # experiments of one layer never share a user; layers are independent
    traffic: 0.2              # share of the layer's users ...
    offset: 0.0               # ... from here on, so that experiments of a layer can lie side by side
    metrics: {primary: [long_view], guardrails: {hide: 0.05}}
    ramp: {steps: [0.01, 0.05], hours: 24}
    arms:
      control: {share: 0.5}
      treatment: {share: 0.5, overrides: {explore: 0.1, weights.like: 2.0}}

``overrides`` are dotted paths into ``recsys.config.system_config.PolicyConfig``. The first arm is the
control. Instead of ``metrics`` a file may name one ``metric``. Of metrics and ramp
experiments/assignment/design.py says more. An arm with ``trains`` has its own line
(experiments/assignment/arm_line.py).

With ``kind: interleaving`` all users of the experiment get lists to which both arms contribute by team draft,
and an engagement is credited to the arm that picked the item (experiments/statistics/interleaving.py): by
``credit``, weights of labels, else by its metric.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final

import msgspec

from experiments.assignment.arm_line import MAX_LINE_NAME, MAX_TRAINED_TRAFFIC, TRAINS, arm_line_name
from experiments.assignment.design import UNIT, Metrics, Ramp, check, metric_of, time_ms_of
from recsys.config.policy_config import UNWANTED, PolicyConfig, check_plugins, check_weights
from recsys.config.system_config import override
from recsys.config.yaml_with_lines import YamlError, YamlWithLines

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TIMES: Final = ("start", "stop")
ARMS, INTERLEAVING = "arms", "interleaving"  # kinds of experiments
INTERLEAVED: Final = "interleaved"  # arm in the stamp of an interleaved list
# Both rankers of an interleaving choose among the same candidates with the same predictions.
SHARED: Final = ("sources", "trust_after", "fixed")
_ROUNDING: Final = 1e-9  # shares are written in decimals


@dataclass(frozen=True)
class Arm:
    """One variant. ``trains``: the examples from which it learns its own line
    (experiments/assignment/arm_line.py); empty: the live line answers its users."""

    name: str
    share: float
    overrides: dict[str, Any] = field(default_factory=dict)
    trains: str = ""

    def __post_init__(self) -> None:
        check(bool(_NAME.fullmatch(self.name)), "arm", self.name, "a name like 'treatment_2'")
        check(0 < self.share <= 1, f"arm {self.name}: share", self.share, "above 0, at most 1")
        kinds = f"one of {', '.join(TRAINS)}"
        check(self.trains in ("", *TRAINS), f"arm {self.name}: trains", self.trains, kinds)


@dataclass(frozen=True)
class Experiment:
    """Arms and the users who are assigned to them. Another ``salt`` reassigns everybody. ``start`` and
    ``stop``: milliseconds; 0: at once, never. ``unwanted``: labels of which fewer are better, by the policy's
    weights; no key of the file."""

    name: str
    arms: tuple[Arm, ...]
    layer: str = "ranking"
    salt: str = ""
    traffic: float = 1.0
    offset: float = 0.0
    metric: str = "long_view"
    about: str = ""
    hypothesis: str = ""
    unit: str = UNIT
    metrics: Metrics = field(default_factory=Metrics)
    ramp: Ramp = field(default_factory=Ramp)
    start: int = 0
    stop: int = 0
    kind: str = ARMS
    credit: dict[str, float] = field(default_factory=dict)
    unwanted: tuple[str, ...] = UNWANTED

    def __post_init__(self) -> None:
        for key in ("name", "layer"):
            value = getattr(self, key)
            check(bool(_NAME.fullmatch(value)), key, value, "a name like 'exploration'")
        check(0 <= self.traffic <= 1, "traffic", self.traffic, "0 to 1")
        inside = 0 <= self.offset and self.offset + self.traffic <= 1 + _ROUNDING
        check(inside, "offset", self.offset, f"0 to {1 - self.traffic:g}, so that traffic fits")
        check(self.unit == UNIT, "unit", self.unit, f"{UNIT!r}")
        after = not self.stop or self.stop > self.start
        check(after, "stop", self.stop, f"a time after start, {self.start}")
        steps = self.ramp.steps
        below = not steps or steps[-1] < self.traffic
        check(below, "ramp", list(steps), f"steps below the traffic, {self.traffic:g}")
        names = [arm.name for arm in self.arms]
        check(len(names) > 0, "arms", names, "at least one arm")
        check(len(set(names)) == len(names), "arms", names, "a name of its own for each arm")
        kinds = (ARMS, INTERLEAVING)
        check(self.kind in kinds, "kind", self.kind, f"{ARMS!r} or {INTERLEAVING!r}")
        if self.interleaves:
            self._check_interleaving()
        else:
            check(not self.credit, "credit", self.credit, f"none: it is for kind {INTERLEAVING!r}")
        lines = [arm_line_name(self.name, arm.name) for arm in self.arms if arm.trains]
        longest = max(lines, key=len, default="")
        expected = f"at most {MAX_LINE_NAME} letters in the names of experiment and arm and a dot"
        check(len(longest) <= MAX_LINE_NAME, "name", longest, expected)
        total = sum(arm.share for arm in self.arms)
        check(abs(total - 1) < 1e-6, "the sum of the arms' shares", total, "1")

    def _check_interleaving(self) -> None:
        shares = {arm.name: arm.share for arm in self.arms}
        even = len(shares) == 2 and set(shares.values()) == {0.5}
        check(even, "arms", shares, "two of share 0.5 (or without one): both are in every list")
        for arm in self.arms:
            trains = f"arm {arm.name}: trains"
            check(not arm.trains, trains, arm.trains, "none: both rank by one line")
            paths = [path for path in arm.overrides if path.split(".")[0] in SHARED]
            check(not paths, f"arm {arm.name}: overrides", paths, f"none of {', '.join(SHARED)}: both "
                   "rank the same candidates; compare these with kind 'arms'")  # fmt: skip
        steps = list(self.ramp.steps)
        check(not steps, "ramp", steps, "none: an interleaving has no ramp")
        guards = self.metrics.guardrails
        check(not guards, "guardrails", guards, "none: lists of both arms have the same users")
        for name, weight in self.credited.items():
            check(name not in UNWANTED, "credit", name, "a label that is wanted")
            check(weight > 0, "credit", {name: weight}, "weights above 0")

    @property
    def interleaves(self) -> bool:
        return self.kind == INTERLEAVING

    @property
    def credited(self) -> dict[str, float]:
        """Credit of an engagement, by label, for the arm that picked the item."""
        return self.credit or {name: 1.0 for name in self.primary}

    @property
    def trains(self) -> bool:
        return any(arm.trains for arm in self.arms)

    @property
    def primary(self) -> tuple[str, ...]:
        return self.metrics.primary or (self.metric,)


def read_experiment(
    text: str, file: object, policy: PolicyConfig, labels: Sequence[str] | None = None, judged: bool = True
) -> Experiment:
    """Reads one experiment from its YAML text. Checks overrides against ``policy``, and weights and metrics
    against ``labels`` (of the schema, if known). ``judged``: False to skip the metrics. Raises YamlError with
    file, line and reason."""
    marked = YamlWithLines(text, file)
    values = marked.mapping(_keys(Experiment) - {"unwanted"})
    for key in ("name", "arms"):
        if key not in values:
            raise marked.error(f"the key {key!r} is required")
    arms = values["arms"]
    if not isinstance(arms, dict):
        raise marked.error(f"arms is {arms!r}, expected arms by their names", "arms")
    if "metrics" in values and "metric" in values:
        raise marked.error("metric and metrics are both there, expected one of them", "metric")
    for key in _TIMES:
        if key in values:
            try:
                values = {**values, key: time_ms_of(values[key])}
            except ValueError as error:
                raise marked.error(f"{key}: {error}", key) from None
    even = {"share": 0.5} if values.get("kind") == INTERLEAVING else {}
    arms = [_arm(marked, name, policy, labels, even) for name in arms]
    for key, kind in (("metrics", Metrics), ("ramp", Ramp)):
        if key in values:
            marked.mapping(_keys(kind), key)
            values = {**values, key: _convert(marked, kind, values[key], key)}
    values = {**values, "arms": arms, "unwanted": policy.unwanted}
    experiment: Experiment = _convert(marked, Experiment, values)
    if all(arm.trains for arm in experiment.arms) and experiment.traffic > MAX_TRAINED_TRAFFIC:
        raise marked.error(
            f"traffic is {experiment.traffic:g}, expected at most {MAX_TRAINED_TRAFFIC:g} where all arms "
            "train: candidates are judged on the others, whom live answers",
            "traffic" if "traffic" in values else "arms",
        )
    if labels is not None and judged:
        _check_metrics(marked, experiment, labels)
    return experiment


def read_experiments(
    texts: Mapping[str, str], policy: PolicyConfig, labels: Sequence[str] | None = None, judged: bool = True
) -> tuple[Experiment, ...]:
    """Reads experiments by file name; raises YamlError also for conflicts. ``judged``: see
    ``read_experiment``."""
    experiments: list[Experiment] = []
    for file, text in sorted(texts.items()):
        experiment = read_experiment(text, file, policy, labels, judged)
        for earlier in experiments:
            if conflict := _conflict(earlier, experiment):
                raise YamlError(file, 1, conflict)
        experiments.append(experiment)
    return tuple(experiments)


@lru_cache(4096)  # each revision has all texts, and parsing one takes milliseconds
def name_in(text: str) -> str:
    """Name of the experiment in a YAML text, even if the rest is invalid; '' if it has none."""
    try:
        value = YamlWithLines(text).value
    except YamlError:
        return ""
    name = value.get("name", "") if isinstance(value, dict) else ""
    return name if isinstance(name, str) else ""


def apply_overrides(policy: PolicyConfig, arms: Sequence[Arm], where: str = "the arms") -> PolicyConfig:
    """The policy with the arms' overrides; raises ValueError for invalid ones."""
    changes = {path: value for arm in arms for path, value in arm.overrides.items()}
    changed = override(policy, changes)
    try:  # ``override`` doesn't check values of mappings such as weights
        return msgspec.convert(msgspec.to_builtins(changed), PolicyConfig)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_metrics(marked: YamlWithLines, experiment: Experiment, labels: Sequence[str]) -> None:
    """Raises YamlError at the first primary metric or guardrail that the labels don't give, or credit of an
    unwanted label."""
    if experiment.interleaves:
        wanted = [label for label in labels if label not in experiment.unwanted]
        for label in experiment.credited:
            if label not in wanted:
                key = "credit" if experiment.credit else "metrics"
                expected = f"expected labels: {', '.join(wanted)} (wanted ones)"
                raise marked.error(f"credit is for {label!r}, {expected}", key)
        return
    metrics = experiment.metrics
    paths: list[tuple[str, tuple[str | int, ...]]]
    paths = [(name, ("metrics", "primary", at)) for at, name in enumerate(metrics.primary)]
    if not metrics.primary:
        key = "metric" if "metric" in marked.value else "metrics"
        paths = [(name, (key,)) for name in experiment.primary]
    paths += [(name, ("metrics", "guardrails", name)) for name in metrics.guardrails]
    for name, path in paths:
        try:
            metric_of(name, labels)
        except ValueError as error:
            raise marked.error(str(error), *path) from None


def _arm(
    marked: YamlWithLines, name: Any, policy: PolicyConfig, labels: Sequence[str] | None,
    defaults: Mapping[str, float],
) -> Arm:  # fmt: skip
    empty = marked.value["arms"][name] is None
    if empty and not defaults:
        raise marked.error(f"arm {name!r} is empty, expected {{share: ...}}", "arms", name)
    values = {} if empty else marked.mapping(_keys(Arm) - {"name"}, "arms", name)
    arm: Arm = _convert(marked, Arm, {**defaults, **values, "name": name}, "arms", name)
    for path, value in arm.overrides.items():
        try:
            changed = apply_overrides(policy, [Arm(arm.name, 1.0, {path: value})], path)
            if labels is not None:
                check_weights(changed, labels)
                check_plugins(changed)
        except ValueError as error:
            raise marked.error(str(error), "arms", name, "overrides", path) from None
    try:  # each is valid alone; together they may put one item at two ranks
        apply_overrides(policy, [arm])
    except ValueError as error:
        raise marked.error(str(error), "arms", name, "overrides") from None
    return arm


def _keys(kind: type[Arm | Experiment | Metrics | Ramp]) -> set[str]:
    return {field.name for field in fields(kind)}


def _convert(marked: YamlWithLines, kind: Any, values: dict[str, Any], *path: str) -> Any:
    """Dataclass of the values; an error points at the key that its text names."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        match = re.search(r"`\$\.(\w+)|^(\w+) is |: (\w+) is ", str(error))
        key = next((group for group in match.groups() if group), "") if match else ""
        raise marked.error(str(error), *path, key) from None


def _conflict(a: Experiment, b: Experiment) -> str | None:
    """Reason why two experiments can't run together."""
    if a.name == b.name:
        return f"the experiment {a.name!r} is there twice"
    if a.layer == b.layer:
        gap = max(a.offset, b.offset) - min(a.offset + a.traffic, b.offset + b.traffic)
        if gap < -_ROUNDING and min(a.traffic, b.traffic) > 0:
            return (
                f"{b.name!r} shares users of the layer {a.layer!r} with {a.name!r}; "
                "give it another offset, less traffic or another layer"
            )
        return None
    remedy = "in different layers: a user may be in both; put them into one layer"
    if a.interleaves and b.interleaves and min(a.traffic, b.traffic) > 0:
        return f"{b.name!r} and {a.name!r} both interleave, {remedy}"
    for path_a in _paths(a):
        for path_b in _paths(b):
            if f"{path_a}.".startswith(f"{path_b}.") or f"{path_b}.".startswith(f"{path_a}."):
                return f"{b.name!r} and {a.name!r} both change {path_b!r}, {remedy}"
    return None


def _paths(experiment: Experiment) -> list[str]:
    """Paths that an experiment changes; fixed slots as one, since an item may be fixed at one rank only."""
    paths = {path for arm in experiment.arms for path in arm.overrides}
    paths = {"fixed" if path.startswith("fixed.") else path for path in paths}
    return sorted(paths | {"trains"} if experiment.trains else paths)
