"""Whether a new live line is to be taken back for what it replaced: Rollback, or Hold. Pure.

What was live before learns on beside it, and is compared with it as a candidate is, so gains are the guard's:
above 0 live is worse. Live has proved itself, and doesn't lose its place for a trifle: it must be known to be
worse by more than a margin. For what it overrates it shows more often, which speaks against it, and a guard
scores an example some moments later than live did.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from experiments.promotion.canary_engagement import EngagementRates
from experiments.promotion.promotion import CanaryEngagement, Evidence, Hold, Rollback, window
from experiments.statistics.comparison import Comparison, ComparisonResult, PairedPredictions
from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from recsys.config.promotion_config import PromotionConfig

# Nothing is decided by fewer, but for predictions that are no numbers: somebody who asks without end, or a
# client that is broken, isn't the viewers. A variance of fewer is none, besides.
LEAST_USERS: Final = 30


@dataclass(frozen=True)
class CalibrationGap:
    """How live's predictions miss what happens, an example: ``over``: by how much they are above
    1 + ``guard_calibration`` times it; ``under``: above it divided by that. So an ``over`` above 0, or an
    ``under`` below 0, is too far."""

    over: AnytimeEstimate = AnytimeEstimate()
    under: AnytimeEstimate = AnytimeEstimate()


@dataclass(frozen=True)
class GuardEvidence(Evidence):
    """``compared``, ``recent``: the guard beside live. ``served``: what live has shown since it is live,
    beside what was shown in the time before. ``not_finite``: of live's predictions. ``failed``: why the guard
    itself can't stand in. ``hours``: since it began."""

    missed: CalibrationGap = CalibrationGap()
    not_finite: int = 0
    hours: float = 0.0


# All that may speak against live takes its share of alpha, so that one that is as good is taken back with
# probability alpha at most. With alpha a, the bounds of a comparison on one side fail with probability 1.5 a
# (a/4 each for log loss, both AUCs and recall; a/2 for segments).


def comparison(rules: PromotionConfig) -> Comparison:
    """The guard beside live, since it began: a quarter of alpha."""
    return Comparison(rules.alpha / 6, 2.0 * rules.least_examples, rules.block_examples)


def lately(rules: PromotionConfig) -> Comparison:
    """The same, begun anew after each ``window``: a quarter of alpha, for all of them together."""
    each = rules.alpha / 6 / max(1, math.ceil(rules.guard_examples / window(rules)))
    return Comparison(each, 2.0 * rules.least_examples, rules.block_examples)


def engagement_rates(kinds: Sequence[str], rules: PromotionConfig) -> EngagementRates:
    """Since it is live, beside before: a quarter of alpha."""
    return EngagementRates(kinds, rules.alpha / 2, rules.canary_examples)


class Calibration:
    """Whether live's predictions are far from what happens: a quarter of alpha."""

    def __init__(self, rules: PromotionConfig) -> None:
        self._times, at = 1 + rules.guard_calibration, 2.0 * rules.least_examples
        self._over, self._under = (ClusteredMean(rules.alpha / 8, at) for _ in range(2))

    def add(self, pairs: PairedPredictions) -> None:
        weights = np.ones(len(pairs)) if pairs.weights_N is None else pairs.weights_N
        over = pairs.live_N - self._times * pairs.labels_N
        under = pairs.live_N - pairs.labels_N / self._times
        self._over.add(pairs.users_N, over, weights)
        self._under.add(pairs.users_N, under, weights)

    def result(self) -> CalibrationGap:
        return CalibrationGap(self._over.estimate(), self._under.estimate())


def judge_guard(evidence: GuardEvidence, rules: PromotionConfig) -> Rollback | Hold:
    """What to do by all that is known now. Rollback: of what is live. A final Hold ends the guard."""
    if evidence.failed:
        why = f"what it replaced can't take its place: {'; '.join(evidence.failed)}"
        return Hold(True, why, evidence)
    if found := _against(evidence, rules):
        return Rollback(found, evidence)
    compared = evidence.compared
    so_far = "nothing against what is live"
    if compared.loss.weight:
        so_far += f"; what it replaced would gain {compared.loss.text} nats"
    if compared.examples >= rules.guard_examples:
        return Hold(True, f"{compared.examples} examples compared, {so_far}", evidence)
    if 0 < rules.guard_hours <= evidence.hours:
        over = f"{rules.guard_hours:g} hours over, {compared.examples} examples compared"
        return Hold(True, f"{over}, {so_far}", evidence)
    why = f"{compared.examples} of {rules.guard_examples} examples compared, {so_far}"
    return Hold(False, why, evidence)


def _against(evidence: GuardEvidence, rules: PromotionConfig) -> str:
    """Why live must not stay; empty where nothing speaks against it."""
    if evidence.not_finite:
        return f"{evidence.not_finite} of live's predictions aren't finite"
    for when, compared in (("", evidence.compared), ("lately ", evidence.recent)):
        if found := _worse(compared, rules):
            return when + found
    return _far(evidence, rules) or _served(evidence.served or CanaryEngagement(), rules)


def _worse(compared: ComparisonResult, rules: PromotionConfig) -> str:
    """In what live is known to be worse than what it replaced; empty where it isn't."""
    if compared.users < LEAST_USERS:
        return ""
    loss, auc = rules.guard_loss_margin, rules.guard_auc_margin
    found = {
        "log loss": (compared.loss, loss),
        "AUC": (compared.auc, auc),
        "AUC within users": (compared.user_auc, auc),
        "share retrieved of what viewers engage with": (compared.recall, rules.recall_margin),
    }
    for name, estimate in compared.segments.items():
        found[f"log loss in {name}"] = estimate, loss + rules.segment_margin
    for name, (estimate, margin) in found.items():
        if estimate.low > margin:
            worse = f"live's {name} is worse than that of what it replaced"
            return f"{worse}: {estimate.text}, allowed {margin}"
    return ""


def _far(evidence: GuardEvidence, rules: PromotionConfig) -> str:
    """Whether live's predictions are far from what happens, and those of what it replaced are nearer."""
    its, other = evidence.compared.live_calibration, evidence.compared.candidate_calibration
    far = evidence.missed.over.low > 0 or evidence.missed.under.high < 0
    if evidence.compared.users < LEAST_USERS or not far or _distance(other) >= _distance(its):
        return ""
    times = 1 + rules.guard_calibration
    return (
        f"live's predictions are {its:.3f} of what happens, expected {1 / times:.3f} to {times:.3f}; those "
        f"of what it replaced {other:.3f}"
    )


def _served(served: CanaryEngagement, rules: PromotionConfig) -> str:
    """What speaks against live in its own lists, beside those of the time before."""
    if min(served.users, served.live_users) < LEAST_USERS:
        return ""
    most, enough = rules.degraded + served.live_degraded, rules.canary_examples
    # Of a time in which little was shown nobody knows how much went without a ranker.
    shown = min(served.examples, served.live_examples)
    if shown >= enough and served.degraded > most:
        share = f"{served.degraded:.1%} of live's lists went without its ranker"
        return f"{share}, {served.live_degraded:.1%} before, expected at most {most:.1%}"
    for kind, estimate in served.gained.items():
        if estimate.high < -rules.guard_engagement_margin:
            return f"viewers give fewer {kind} than before: gained {estimate.text} an item"
    return ""


def _distance(ratio: float) -> float:
    """Of predicted over happened from 1; where there is none, as far as can be."""
    return abs(math.log(ratio)) if ratio > 0 and math.isfinite(ratio) else math.inf
