"""What is read off an experiment, as values: what is known, how surely, and what follows from it.

The intervals of primary metrics hold together, over metrics and arms, at all times, with probability 1 − α
(Bonferroni); their p-values are adjusted over the same family (Holm). Guardrails are a family of their own,
and so are days and segments: these are for looking, and decide nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from experiments.assignment.definition import Experiment
from experiments.assignment.metric import Metric, metric_of, sums_of
from experiments.statistics.effect import Effect, effect, eta_of, holm
from experiments.statistics.outcomes import UserOutcomes
from experiments.statistics.sample_ratio import SampleRatio, sample_ratio

BROKEN: Final = "broken"  # nothing that it says can be trusted
HARM: Final = "harm"  # a guardrail is known to be worse than tolerated
BETTER: Final = "better"
WORSE: Final = "worse"
MIXED: Final = "mixed"  # one primary metric of an arm is better, another worse: people weigh them
OPEN: Final = "open"
SAFE: Final = "safe"  # of a guardrail: known not to be worse than tolerated
PRIMARY: Final = "primary"
GUARDRAIL: Final = "guardrail"
# Which lines are the reasons of a verdict, the weightiest first: what is worse is among them in any case.
_WHY: Final = {
    HARM: (HARM, WORSE),
    BETTER: (BETTER, WORSE),
    MIXED: (WORSE, BETTER),
    WORSE: (WORSE,),
}


@dataclass(frozen=True)
class ArmSummary:
    name: str
    share: float
    users: int
    shown: float


@dataclass(frozen=True)
class MetricEffect:
    """One metric of one arm against the control. ``p``: adjusted over its family. ``said``: better, worse or
    open; of a guardrail harm, safe or open. ``tolerated``: the relative loss."""

    metric: str
    role: str
    arm: str
    effect: Effect
    p: float
    said: str
    higher_is_better: bool = True
    tolerated: float = 0.0


@dataclass(frozen=True)
class SubgroupEffect:
    """The first primary metric in a part of what was seen: a day since exposure, or a segment of users."""

    part: str
    arm: str
    effect: Effect


@dataclass(frozen=True)
class Readout:
    """``verdict`` with its reasons, the weightiest first. ``sampled``: the share of users of whom it was kept
    what they did; ``counted``: of whom it was counted which arm they have, which is mostly all."""

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


def metrics_needed(
    experiment: Experiment, labels: Sequence[str]
) -> tuple[list[Metric], list[Metric]]:
    """Primary metrics and guardrails. Raises ValueError for one that the labels don't give."""
    primary = [metric_of(name, labels) for name in experiment.primary]
    return primary, [metric_of(name, labels) for name in experiment.metrics.guardrails]


def outcomes_for(experiment: Experiment, labels: Sequence[str], most_users: int) -> UserOutcomes:
    """Empty outcomes with the arms and the sums that its report needs."""
    primary, guardrails = metrics_needed(experiment, labels)
    arms = [arm.name for arm in experiment.arms]
    return UserOutcomes(arms, sums_of([*primary, *guardrails]), most_users=most_users)


def ratio_of(experiment: Experiment, outcomes: UserOutcomes, before: float = 1.0) -> SampleRatio:
    """ArmUsers by arm against the arms' shares. ``before``: the least p-value so far."""
    total = sum(arm.share for arm in experiment.arms)
    return sample_ratio(outcomes.counts(), [arm.share / total for arm in experiment.arms], before)


def readout(
    experiment: Experiment,
    outcomes: UserOutcomes,
    labels: Sequence[str],
    *,
    until_ms: int,
    segments: Sequence[str] = (),
    misassigned: int = 0,
    ratio_before: float = 1.0,
    parts: bool = True,
) -> Readout:
    """``segments``: names by their numbers in the outcomes. ``parts``: with days and segments, which take
    most of the time. ``ratio_before``: the least p-value of the sample
    ratio so far. ``misassigned``: users whose arm on the log isn't the one that the hash gives."""
    primary, guardrails = metrics_needed(experiment, labels)
    ratio = ratio_of(experiment, outcomes, ratio_before)
    lines = (
        *_lines(experiment, outcomes, primary, PRIMARY),
        *_lines(experiment, outcomes, guardrails, GUARDRAIL),
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


def _lines(
    experiment: Experiment, outcomes: UserOutcomes, metrics: Sequence[Metric], role: str
) -> list[MetricEffect]:
    family = len(metrics) * (len(experiment.arms) - 1)
    if not family:
        return []
    alpha = experiment.metrics.alpha / family
    eta = eta_of(experiment.metrics.find, alpha)
    found: list[tuple[Metric, str, Effect]] = []
    for metric in metrics:
        control = outcomes.users(metric, 0)
        for number, arm in enumerate(experiment.arms[1:], 1):
            its = effect(outcomes.users(metric, number), control, alpha, eta)
            found.append((metric, arm.name, its))
    adjusted = holm([its.p for _, _, its in found])
    lines = []
    for (metric, name, its), p in zip(found, adjusted, strict=True):
        lost = experiment.metrics.guardrails[metric.name] if role == GUARDRAIL else 0.0
        said = _guarded(metric, its, lost) if role == GUARDRAIL else _said(metric, its)
        lines.append(MetricEffect(metric.name, role, name, its, p, said, metric.higher_is_better, lost))
    return lines


def _said(metric: Metric, its: Effect) -> str:
    if not its.excludes_zero:
        return OPEN
    return BETTER if (its.low > 0) == metric.higher_is_better else WORSE


def _guarded(metric: Metric, its: Effect, lost: float) -> str:
    """Harm, safe or open: where fewer are better, a loss is an increase."""
    if metric.higher_is_better:
        return HARM if its.high < -lost else SAFE if its.low > -lost else OPEN
    return HARM if its.low > lost else SAFE if its.high < lost else OPEN


def _verdict(
    ratio: SampleRatio, crossed: int, misassigned: int, lines: Sequence[MetricEffect]
) -> tuple[str, tuple[str, ...]]:
    broken = []
    if ratio.alarm:
        counts = ", ".join(
            f"{n:,} (expected {e:,.0f})" for n, e in zip(ratio.counts, ratio.expected, strict=True)
        )
        broken.append(f"users by arm are {counts}, p {ratio.p:.1e}: something loses or moves them")
    if misassigned:
        broken.append(f"{misassigned:,} users have another arm than the hash gives them")
    if crossed:
        broken.append(f"{crossed:,} users were given more than one arm")
    if broken:
        return BROKEN, tuple(broken)
    verdict = _of_lines(lines)
    if verdict == OPEN:
        return OPEN, ("no primary metric is known to differ yet",)
    told = [in_words(line) for said in _WHY[verdict] for line in lines if line.said == said]
    unsure = [line for line in lines if line.role == GUARDRAIL and line.said == OPEN]
    return verdict, (*told, *(f"{line.metric} of {line.arm} is open" for line in unsure))


def _of_lines(lines: Sequence[MetricEffect]) -> str:
    """Harm of any arm, else the verdict of the best arm: it is an arm that people choose, whole, so what is
    better in one metric doesn't make up for what is worse in another."""
    if any(line.said == HARM for line in lines):
        return HARM
    by_arm: dict[str, set[str]] = {}
    for line in lines:
        by_arm.setdefault(line.arm, set()).add(line.said)
    arms = list(by_arm.values())
    if any(BETTER in said and WORSE not in said for said in arms):
        return BETTER
    if any(BETTER in said for said in arms):
        return MIXED
    return WORSE if any(WORSE in said for said in arms) else OPEN


def in_words(line: MetricEffect) -> str:
    """One line's effect as a sentence."""
    its = line.effect
    bounds = f"{its.relative:+.2%} ({its.low:+.2%} to {its.high:+.2%})"
    said = f", tolerated {line.tolerated:.0%}" if line.role == GUARDRAIL else ""
    return f"{line.metric} of {line.arm}: {bounds}{said}: {line.said}"


def _days(
    experiment: Experiment, outcomes: UserOutcomes, metric: Metric, until_ms: int
) -> tuple[SubgroupEffect, ...]:
    """By days since exposure: an effect of novelty is large at first, and leaves."""
    family = outcomes.days * max(1, len(experiment.arms) - 1)
    alpha = experiment.metrics.alpha / family
    eta = eta_of(experiment.metrics.find, alpha)
    cells = []
    for day in range(outcomes.days):
        control = outcomes.users(metric, 0, day=day, until_ms=until_ms)
        name = f"day {day}" if day < outcomes.days - 1 else f"day {day} and later"
        for number, arm in enumerate(experiment.arms[1:], 1):
            mine = outcomes.users(metric, number, day=day, until_ms=until_ms)
            if mine.denominators_U.sum() > 0 and control.denominators_U.sum() > 0:
                cells.append(SubgroupEffect(name, arm.name, effect(mine, control, alpha, eta)))
    return tuple(cells)


def _segments(
    experiment: Experiment, outcomes: UserOutcomes, metric: Metric, names: Sequence[str]
) -> tuple[SubgroupEffect, ...]:
    parts: list[tuple[str, int | None, bool | None]] = [
        ("new", None, True),
        ("returning", None, False),
    ]
    parts += [(names[s], s, None) for s in outcomes.segments() if s < len(names)]
    alpha = experiment.metrics.alpha / (len(parts) * max(1, len(experiment.arms) - 1))
    eta = eta_of(experiment.metrics.find, alpha)
    cells = []
    for name, segment, new in parts:
        control = outcomes.users(metric, 0, segment=segment, new=new)
        for number, arm in enumerate(experiment.arms[1:], 1):
            mine = outcomes.users(metric, number, segment=segment, new=new)
            if len(mine) and len(control):
                cells.append(SubgroupEffect(name, arm.name, effect(mine, control, alpha, eta)))
    return tuple(cells)
