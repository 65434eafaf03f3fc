"""What an experiment is, and how its YAML file is read: every mistake is told with its file and line.

A file is one experiment::

    name: more_exploration
    hypothesis: who is shown more new things stays longer
    layer: ranking            # experiments of one layer never share a user; layers are independent
    traffic: 0.2              # the share of the layer's users ...
    offset: 0.0               # ... that begins here, so that two experiments of a layer can lie side by side
    metrics: {primary: [long_view], guardrails: {hide: 0.05}}
    ramp: {steps: [0.01, 0.05], hours: 24}
    arms:
      control: {share: 0.5}
      treatment: {share: 0.5, overrides: {explore: 0.1, weights.like: 2.0}}

``overrides`` are dotted paths into ``recsys.config.system_config.PolicyConfig``. The first arm is the control. Instead of
``metrics`` a file may name one ``metric``. Of metrics and ramp experiments/assignment/design.py says more. An arm with
``trains`` learns a line of its own (experiments/assignment/arm_line.py).

With ``kind: interleaving`` every user who is in gets lists that both arms draw in turns, and what is done
with an item is credited to the arm that picked it (experiments/statistics/interleaving.py): by ``credit``, weights of
labels, else by its metric.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import msgspec

from experiments.assignment.arm_line import (
    MAX_LINE_NAME,
    MAX_TRAINED_TRAFFIC,
    TRAINS,
    arm_line_name,
)
from experiments.assignment.design import UNIT, Metrics, Ramp, time_ms_of
from experiments.assignment.metric import metric_of
from recsys.config.policy_config import PolicyConfig, check_weights
from recsys.config.system_config import override
from recsys.config.yaml_with_lines import YamlError, YamlWithLines

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_TIMES: Final = ("start", "stop")
ARMS, INTERLEAVING = "arms", "interleaving"  # the kinds of experiments
INTERLEAVED: Final = "interleaved"  # the arm in the stamp of a list that both arms drew
# Both rankers of an interleaving choose among the same candidates, by the same predictions.
SHARED: Final = ("sources", "trust_after", "fixed")
_UNWANTED: Final = ("hide", "skip")
_KEYS: Final = {
    "name", "kind", "credit", "hypothesis", "about", "unit", "layer", "salt", "traffic", "offset", "metric",
    "metrics", "ramp", "arms", *_TIMES,
}  # fmt: skip
_ARM_KEYS: Final = {"share", "overrides", "trains"}
_ROUNDING: Final = 1e-9  # shares are written in decimals


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}, expected {expected}")


@dataclass(frozen=True)
class Arm:
    """One variant. ``trains``: from what it learns a line of its own, that answers its users
    (experiments/assignment/arm_line.py); empty: the live line answers them."""

    name: str
    share: float
    overrides: dict[str, Any] = field(default_factory=dict)
    trains: str = ""

    def __post_init__(self) -> None:
        _check(bool(_NAME.fullmatch(self.name)), "arm", self.name, "a name like 'treatment_2'")
        _check(0 < self.share <= 1, f"arm {self.name}: share", self.share, "above 0, at most 1")
        kinds = f"one of {', '.join(TRAINS)}"
        _check(self.trains in ("", *TRAINS), f"arm {self.name}: trains", self.trains, kinds)


@dataclass(frozen=True)
class Experiment:
    """Arms, and the users among whom they are drawn. Another ``salt`` draws everybody anew. ``start`` and
    ``stop`` are milliseconds; 0: at once, never."""

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

    def __post_init__(self) -> None:
        for key in ("name", "layer"):
            value = getattr(self, key)
            _check(bool(_NAME.fullmatch(value)), key, value, "a name like 'exploration'")
        _check(0 <= self.traffic <= 1, "traffic", self.traffic, "0 to 1")
        inside = 0 <= self.offset and self.offset + self.traffic <= 1 + _ROUNDING
        _check(inside, "offset", self.offset, f"0 to {1 - self.traffic:g}, so that traffic fits")
        _check(self.unit == UNIT, "unit", self.unit, f"{UNIT!r}")
        least = self.start or 0
        _check(
            not self.stop or self.stop > least, "stop", self.stop, f"a time after start, {least}"
        )
        steps = self.ramp.steps
        below = not steps or steps[-1] < self.traffic
        _check(below, "ramp", list(steps), f"steps below the traffic, {self.traffic:g}")
        names = [arm.name for arm in self.arms]
        _check(len(names) > 0, "arms", names, "at least one arm")
        _check(len(set(names)) == len(names), "arms", names, "a name of its own for each arm")
        _check(
            self.kind in (ARMS, INTERLEAVING), "kind", self.kind, f"{ARMS!r} or {INTERLEAVING!r}"
        )
        if self.interleaves:
            self._check_interleaving()
        else:
            _check(not self.credit, "credit", self.credit, f"none: it is for kind {INTERLEAVING!r}")
        self._check_trains()
        total = sum(arm.share for arm in self.arms)
        _check(abs(total - 1) < 1e-6, "the sum of the arms' shares", total, "1")

    def _check_interleaving(self) -> None:
        shares = {arm.name: arm.share for arm in self.arms}
        even = len(shares) == 2 and set(shares.values()) == {0.5}
        _check(even, "arms", shares, "two of share 0.5 (or without one): both are in every list")
        for arm in self.arms:
            _check(
                not arm.trains, f"arm {arm.name}: trains", arm.trains, "none: both rank by one line"
            )
            paths = [path for path in arm.overrides if path.split(".")[0] in SHARED]
            _check(not paths, f"arm {arm.name}: overrides", paths, f"none of {', '.join(SHARED)}: both "
                   "rank the same candidates; compare these with kind 'arms'")  # fmt: skip
        _check(
            not self.ramp.steps, "ramp", list(self.ramp.steps), "none: an interleaving has no ramp"
        )
        guards = self.metrics.guardrails
        _check(not guards, "guardrails", guards, "none: lists of both arms have the same users")
        for name, weight in self.credited.items():
            _check(name not in _UNWANTED, "credit", name, "a label that is wanted")
            _check(weight > 0, "credit", {name: weight}, "weights above 0")

    @property
    def interleaves(self) -> bool:
        return self.kind == INTERLEAVING

    @property
    def credited(self) -> dict[str, float]:
        """What an engagement is worth, by label, to the arm that picked the item."""
        return self.credit or {name: 1.0 for name in self.primary}

    def _check_trains(self) -> None:
        lines = [arm_line_name(self.name, arm.name) for arm in self.arms if arm.trains]
        longest = max(lines, key=len, default="")
        most = (
            f"at most {MAX_LINE_NAME} letters in the names of experiment and arm with a dot between"
        )
        _check(len(longest) <= MAX_LINE_NAME, "name", longest, most)

    @property
    def trains(self) -> bool:
        """Whether any arm trains a line of its own."""
        return any(arm.trains for arm in self.arms)

    @property
    def primary(self) -> tuple[str, ...]:
        """The names of the metrics that decide."""
        return self.metrics.primary or (self.metric,)


def read_experiment(
    text: str,
    file: object,
    policy: PolicyConfig,
    labels: Sequence[str] | None = None,
    judged: bool = True,
) -> Experiment:
    """One experiment from its YAML text; ``policy`` is what its overrides are checked against, and ``labels``
    (of the schema, where it is known) what may have a weight, and what metrics there are. ``judged``: False
    for who only gives arms: its metrics are nothing to them.

    Raises YamlError with the file, the line and the reason.
    """
    marked = YamlWithLines(text, file)
    values = marked.mapping(_KEYS)
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
    made = [_arm(marked, name, policy, labels, even) for name in arms]
    for key, known in (("metrics", Metrics), ("ramp", Ramp)):
        if key in values:
            marked.mapping({its.name for its in fields(known)}, key)
            values = {**values, key: _made(marked, known, values[key], key)}
    experiment: Experiment = _made(marked, Experiment, {**values, "arms": made})
    if all(arm.trains for arm in experiment.arms) and experiment.traffic > MAX_TRAINED_TRAFFIC:
        raise marked.error(
            f"traffic is {experiment.traffic:g}, expected at most {MAX_TRAINED_TRAFFIC:g} where all arms train: "
            "candidates are judged on what live answers the others",
            "traffic" if "traffic" in values else "arms",
        )
    if labels is not None and judged:
        _check_metrics(marked, experiment, labels)
    return experiment


def read_experiments(
    texts: Mapping[str, str],
    policy: PolicyConfig,
    labels: Sequence[str] | None = None,
    stopped: Collection[str] = (),
    judged: bool = True,
) -> tuple[Experiment, ...]:
    """Several experiments, by the names of their files; raises YamlError also where two don't fit. Those that
    are ``stopped`` are in nobody's way. ``judged``: as of ``read_experiment``."""
    found: list[Experiment] = []
    for file, text in sorted(texts.items()):
        experiment = read_experiment(text, file, policy, labels, judged)
        clashes = (_clash(other, experiment, stopped) for other in found)
        clash = next((its for its in clashes if its), None)
        if clash:
            raise YamlError(file, 1, clash)
        found.append(experiment)
    return tuple(found)


def name_in(text: str) -> str:
    """The name that a YAML text gives its experiment, whether or not the rest of it can be read; '' where it
    gives none."""
    try:
        value = YamlWithLines(text).value
    except YamlError:
        return ""
    name = value.get("name", "") if isinstance(value, dict) else ""
    return name if isinstance(name, str) else ""


def apply_overrides(
    policy: PolicyConfig, arms: Sequence[Arm], where: str = "the arms"
) -> PolicyConfig:
    """The policy with the overrides of arms laid over it; raises ValueError for what doesn't fit."""
    changes = {path: value for arm in arms for path, value in arm.overrides.items()}
    changed = override(policy, changes)
    try:  # a mapping such as weights takes any value as it is: check the whole
        return msgspec.convert(msgspec.to_builtins(changed), PolicyConfig)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_metrics(marked: YamlWithLines, experiment: Experiment, labels: Sequence[str]) -> None:
    """Raises YamlError at the first primary metric or guardrail that the labels don't give."""
    if experiment.interleaves:
        for label in experiment.credited:
            if label not in labels:
                key = "credit" if experiment.credit else "metrics"
                raise marked.error(
                    f"credit is for {label!r}, expected labels: {', '.join(labels)}", key
                )
        return
    inside = experiment.metrics
    named: list[tuple[str, tuple[str | int, ...]]]
    named = [(name, ("metrics", "primary", at)) for at, name in enumerate(inside.primary)]
    if not inside.primary:
        short = "metric" if "metric" in marked.value else "metrics"
        named = [(name, (short,)) for name in experiment.primary]
    named += [(name, ("metrics", "guardrails", name)) for name in inside.guardrails]
    for name, path in named:
        try:
            metric_of(name, labels)
        except ValueError as error:
            raise marked.error(str(error), *path) from None


def _arm(
    marked: YamlWithLines,
    name: Any,
    policy: PolicyConfig,
    labels: Sequence[str] | None,
    usual: Mapping[str, float],
) -> Arm:
    if marked.value["arms"][name] is None and not usual:
        raise marked.error(f"arm {name!r} is empty, expected {{share: ...}}", "arms", name)
    empty = marked.value["arms"][name] is None
    values = {} if empty else marked.mapping(_ARM_KEYS, "arms", name)
    arm: Arm = _made(marked, Arm, {**usual, **values, "name": name}, "arms", name)
    for path, value in arm.overrides.items():
        try:
            changed = apply_overrides(policy, [Arm(arm.name, 1.0, {path: value})], path)
            if labels is not None:
                check_weights(changed, labels)
        except ValueError as error:
            raise marked.error(str(error), "arms", name, "overrides", path) from None
    try:  # each fits alone; together they may put one item at two ranks
        apply_overrides(policy, [arm])
    except ValueError as error:
        raise marked.error(str(error), "arms", name, "overrides") from None
    return arm


def _made(marked: YamlWithLines, kind: Any, values: dict[str, Any], *path: str) -> Any:
    """The dataclass of the values; an error points at the key that it speaks of, where it names one."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        said = str(error)
        named = re.search(r"`\$\.(\w+)|^(\w+) is |: (\w+) is ", said)
        key = next((group for group in named.groups() if group), "") if named else ""
        raise marked.error(said, *path, key) from None


def _clash(one: Experiment, other: Experiment, stopped: Collection[str]) -> str | None:
    """Why two experiments can't run together, if so."""
    if one.name == other.name:
        return f"the experiment {one.name!r} is there twice"
    if one.name in stopped or other.name in stopped:
        return None
    if one.layer == other.layer:
        gap = max(one.offset, other.offset) - min(
            one.offset + one.traffic, other.offset + other.traffic
        )
        if gap < -_ROUNDING and min(one.traffic, other.traffic) > 0:
            return (
                f"{other.name!r} shares users of the layer {one.layer!r} with {one.name!r}; "
                "give it another offset, less traffic or another layer"
            )
        return None
    if one.interleaves and other.interleaves and min(one.traffic, other.traffic) > 0:
        return (
            f"{other.name!r} and {one.name!r} both interleave, in different layers: a user may be in both; "
            "put them into one layer"
        )
    for mine in _paths(one):
        for theirs in _paths(other):
            if f"{mine}.".startswith(f"{theirs}.") or f"{theirs}.".startswith(f"{mine}."):
                return (
                    f"{other.name!r} and {one.name!r} both change {theirs!r}, in different layers: "
                    "a user may be in both; put them into one layer"
                )
    return None


def _paths(experiment: Experiment) -> list[str]:
    """What an experiment changes; fixed slots as one, since an item may be fixed at one rank only."""
    paths = {path for arm in experiment.arms for path in arm.overrides}
    paths = {"fixed" if path.startswith("fixed.") else path for path in paths}
    return sorted(paths | {"trains"} if experiment.trains else paths)
