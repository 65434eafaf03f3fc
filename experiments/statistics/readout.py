"""Readout of an experiment: effects with always-valid intervals, and a verdict.

Intervals of the primary metrics hold jointly over metrics, arms and time with probability 1 − α (Bonferroni);
their p-values are adjusted over the same family (Holm). Guardrails are a family of their own. Days and
segments are exploratory: each is a family too, and decides nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from experiments.assignment.definition import Experiment
from experiments.assignment.design import Metric, metric_of, sums_of
from experiments.statistics.effect import ArmUsers, Effect, effect, eta_of, holm
from experiments.statistics.outcomes import UserOutcomes
from experiments.statistics.sample_ratio import SampleRatio, sample_ratio

BROKEN: Final = "broken"  # the data can't be trusted
HARM: Final = "harm"  # a guardrail is known to be worse than tolerated
BETTER: Final = "better"
WORSE: Final = "worse"
MIXED: Final = "mixed"  # one primary metric of an arm is better, another worse
OPEN: Final = "open"
SAFE: Final = "safe"  # a guardrail is known not to be worse than tolerated
PRIMARY: Final = "primary"
GUARDRAIL: Final = "guardrail"
# Results given as reasons of a verdict, most important first; worse ones are always among them.
_REASONS: Final = {HARM: (HARM, WORSE), BETTER: (BETTER, WORSE), MIXED: (WORSE, BETTER), WORSE: (WORSE,)}


@dataclass(frozen=True)
class ArmSummary:
    name: str
    share: float
    users: int
    shown: float


@dataclass(frozen=True)
class MetricEffect:
    """Effect of one arm on one metric against the control. ``p``: adjusted over its family. ``finding``:
    better, worse or open; for a guardrail harm, safe or open. ``tolerated``: relative loss."""

    metric: str
    role: str
    arm: str
    effect: Effect
    p: float
    finding: str
    higher_is_better: bool = True
    tolerated: float = 0.0


@dataclass(frozen=True)
class SubgroupEffect:
    """Effect on the first primary metric on one day since exposure or in one segment of users."""

    part: str
    arm: str
    effect: Effect


@dataclass(frozen=True)
class Readout:
    """``verdict`` with its reasons, most important first. ``sampled``: share of users with outcomes;
    ``counted``: share of users in the counts by arm, mostly 1."""

    experiment: str
    hypothesis: str
    metric: str  # the first primary one
    alpha: float
    until_ms: int
    arms: tuple[ArmSummary, ...]
    sample_ratio: SampleRatio
    crossed: int
    misassigned: int
    lines: tuple[MetricEffect, ...]
    days: tuple[SubgroupEffect, ...]
    segments: tuple[SubgroupEffect, ...]
    verdict: str
    why: tuple[str, ...]
    sampled: float = 1.0
    outside: int = 0
    counted: float = 1.0

    @property
    def users(self) -> int:
        return sum(arm.users for arm in self.arms)


def metrics_needed(experiment: Experiment, labels: Sequence[str]) -> tuple[list[Metric], list[Metric]]:
    """Primary metrics and guardrails. Raises ValueError for one that the labels don't give."""
    primary = [metric_of(name, labels, experiment.unwanted) for name in experiment.primary]
    guardrails = experiment.metrics.guardrails
    return primary, [metric_of(name, labels, experiment.unwanted) for name in guardrails]


def outcomes_for(experiment: Experiment, labels: Sequence[str], most_users: int) -> UserOutcomes:
    """Empty outcomes with the experiment's arms and the sums that its readout needs."""
    primary, guardrails = metrics_needed(experiment, labels)
    arms = [arm.name for arm in experiment.arms]
    return UserOutcomes(arms, sums_of([*primary, *guardrails]), most_users=most_users)


def ratio_of(experiment: Experiment, outcomes: UserOutcomes, before: float = 1.0) -> SampleRatio:
    """Sample ratio of users by arm. ``before``: the least p-value so far."""
    total = sum(arm.share for arm in experiment.arms)
    return sample_ratio(outcomes.counts(), [arm.share / total for arm in experiment.arms], before)


def readout(
    experiment: Experiment, outcomes: UserOutcomes, labels: Sequence[str], *, until_ms: int,
    segments: Sequence[str] = (), misassigned: int = 0, ratio_before: float = 1.0, parts: bool = True,
) -> Readout:  # fmt: skip
    """``segments``: names by their numbers in the outcomes. ``parts``: include days and segments, which take
    most of the time. ``ratio_before``: least p-value of the sample ratio so far. ``misassigned``: users whose
    arm on the log differs from the hash's."""
    primary, guardrails = metrics_needed(experiment, labels)
    ratio = ratio_of(experiment, outcomes, ratio_before)
    lines = (
        *_metric_effects(experiment, outcomes, primary, PRIMARY),
        *_metric_effects(experiment, outcomes, guardrails, GUARDRAIL),
    )
    arms = tuple(
        ArmSummary(arm.name, arm.share, count, outcomes.shown(number))
        for number, (arm, count) in enumerate(zip(experiment.arms, outcomes.counts(), strict=True))
    )
    verdict, why = _verdict(ratio, outcomes.crossed, misassigned, lines)
    return Readout(
        experiment.name, experiment.hypothesis or experiment.about, primary[0].name,
        experiment.metrics.alpha, until_ms, arms, ratio, outcomes.crossed, misassigned, lines,
        _days(experiment, outcomes, primary[0], until_ms) if parts else (),
        _segments(experiment, outcomes, primary[0], segments) if parts else (),
        verdict, why, outcomes.sampled, outcomes.outside, outcomes.exposed.sampled,
    )  # fmt: skip


def _metric_effects(
    experiment: Experiment, outcomes: UserOutcomes, metrics: Sequence[Metric], role: str
) -> list[MetricEffect]:
    family = len(metrics) * (len(experiment.arms) - 1)
    if not family:
        return []
    alpha = experiment.metrics.alpha / family
    eta = eta_of(experiment.metrics.find, alpha)
    effects: list[tuple[Metric, str, Effect]] = []
    for metric in metrics:
        control = outcomes.users(metric, 0)
        for number, arm in enumerate(experiment.arms[1:], 1):
            treatment = outcomes.users(metric, number)
            effects.append((metric, arm.name, effect(treatment, control, alpha, eta)))
    lines = []
    adjusted = holm([estimate.p for _, _, estimate in effects])
    for (metric, arm_name, estimate), p in zip(effects, adjusted, strict=True):
        guarded = role == GUARDRAIL
        loss = experiment.metrics.guardrails[metric.name] if guarded else 0.0
        result = _guardrail_result(metric, estimate, loss) if guarded else _result(metric, estimate)
        place = (metric.name, role, arm_name, estimate, p, result)
        lines.append(MetricEffect(*place, metric.higher_is_better, loss))
    return lines


def _result(metric: Metric, estimate: Effect) -> str:
    if not estimate.excludes_zero:
        return OPEN
    return BETTER if (estimate.low > 0) == metric.higher_is_better else WORSE


def _guardrail_result(metric: Metric, estimate: Effect, loss: float) -> str:
    """Harm, safe or open. For metrics that should be low, a loss is an increase."""
    if metric.higher_is_better:
        return HARM if estimate.high < -loss else SAFE if estimate.low > -loss else OPEN
    return HARM if estimate.low > loss else SAFE if estimate.high < loss else OPEN


def _verdict(
    ratio: SampleRatio, crossed: int, misassigned: int, lines: Sequence[MetricEffect]
) -> tuple[str, tuple[str, ...]]:
    broken = []
    if ratio.alarm:
        pairs = zip(ratio.counts, ratio.expected, strict=True)
        counts = ", ".join(f"{n:,} (expected {e:,.0f})" for n, e in pairs)
        broken.append(f"users by arm are {counts}, p {ratio.p:.1e}: something loses or moves them")
    if misassigned:
        broken.append(f"{misassigned:,} users have another arm than the hash gives them")
    if crossed:
        broken.append(f"{crossed:,} users were given more than one arm")
    if broken:
        return BROKEN, tuple(broken)
    verdict = _overall(lines)
    if verdict == OPEN:
        return OPEN, ("no primary metric is known to differ yet",)
    reasons = [in_words(line) for r in _REASONS[verdict] for line in lines if line.finding == r]
    unsure = [line for line in lines if line.role == GUARDRAIL and line.finding == OPEN]
    return verdict, (*reasons, *(f"{line.metric} of {line.arm} is open" for line in unsure))


def _overall(lines: Sequence[MetricEffect]) -> str:
    """Harm by any arm, else the verdict of the best arm. An arm is chosen as a whole, so a better metric
    doesn't make up for a worse one."""
    if any(line.finding == HARM for line in lines):
        return HARM
    by_arm: dict[str, set[str]] = {}
    for line in lines:
        by_arm.setdefault(line.arm, set()).add(line.finding)
    better = [results for results in by_arm.values() if BETTER in results]
    if better:
        return BETTER if any(WORSE not in results for results in better) else MIXED
    return WORSE if any(WORSE in results for results in by_arm.values()) else OPEN


def in_words(line: MetricEffect) -> str:
    """One metric's effect as a sentence."""
    tolerated = f", tolerated {line.tolerated:.0%}" if line.role == GUARDRAIL else ""
    return f"{line.metric} of {line.arm}: {line.effect.interval}{tolerated}: {line.finding}"


def _days(
    experiment: Experiment, outcomes: UserOutcomes, metric: Metric, until_ms: int
) -> tuple[SubgroupEffect, ...]:
    """Effects by day since exposure: a novelty effect is large at first and fades."""
    groups = []
    for day in range(outcomes.days):
        arms = range(len(experiment.arms))
        users = [outcomes.users(metric, arm, day=day, until_ms=until_ms) for arm in arms]
        groups.append((f"day {day}" + " and later" * (day == outcomes.days - 1), users))
    by_day = _subgroups(experiment, groups)
    return tuple(part for part, a, b in by_day if a.denominators_U.sum() > 0 and b.denominators_U.sum() > 0)


def _segments(
    experiment: Experiment, outcomes: UserOutcomes, metric: Metric, names: Sequence[str]
) -> tuple[SubgroupEffect, ...]:
    parts: list[tuple[str, int | None, bool | None]]
    parts = [("new", None, True), ("returning", None, False)]
    parts += [(names[s], s, None) for s in outcomes.segments() if s < len(names)]
    groups = []
    for name, segment, new in parts:
        arms = range(len(experiment.arms))
        users = [outcomes.users(metric, arm, segment=segment, new=new) for arm in arms]
        groups.append((name, users))
    return tuple(part for part, a, b in _subgroups(experiment, groups) if len(a) and len(b))


def _subgroups(
    experiment: Experiment, groups: Sequence[tuple[str, Sequence[ArmUsers]]]
) -> Iterator[tuple[SubgroupEffect, ArmUsers, ArmUsers]]:
    """Effects by subgroup, given the users of each arm, the control first; with the users compared."""
    alpha = experiment.metrics.alpha / (len(groups) * max(1, len(experiment.arms) - 1))
    eta = eta_of(experiment.metrics.find, alpha)
    for name, (control, *treatments) in groups:
        for arm, users in zip(experiment.arms[1:], treatments, strict=True):
            estimate = effect(users, control, alpha, eta)
            yield SubgroupEffect(name, arm.name, estimate), users, control
