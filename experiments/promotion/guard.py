"""Guard of a new live line: decides whether it is rolled back to what it replaced.

The former live line keeps learning and is compared with live as a candidate is, so gains are the guard's:
above 0 live is worse. Live must be worse by more than a margin, for two reasons: it shows more of what it
overrates, which counts against it, and the guard scores an example a moment later than live did.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from experiments.promotion.promotion import (
    CanaryEngagement,
    EngagementRates,
    Evidence,
    Hold,
    Rollback,
    log_distance,
    window,
)
from experiments.statistics.comparison import Comparison, ComparisonResult, PairedPredictions
from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from recsys.config.policy_config import UNWANTED
from recsys.config.promotion_config import PromotionConfig

# Fewer decide nothing, except predictions that aren't finite: one busy or broken client isn't the viewers,
# and a variance of fewer is unreliable.
LEAST_USERS: Final = 30
_TIMES: Final = 1.5  # tolerated ratio of predicted and observed, either way


@dataclass(frozen=True)
class GuardEvidence(Evidence):
    """``compared``, ``recent``: the guard beside live. ``served``: items shown since live is live, beside
    those of the time before. ``over``, ``under``: see ``Calibration``. ``not_finite``: number of live's
    predictions. ``failed``: reasons why the guard can't take over. ``hours``: since it began."""

    over: AnytimeEstimate = AnytimeEstimate()
    under: AnytimeEstimate = AnytimeEstimate()
    not_finite: int = 0
    hours: float = 0.0


# Each source of evidence takes its share of alpha, so that an equally good live line is rolled back with
# probability alpha at most. With alpha a, the one-sided bounds of a comparison fail with probability 1.5 a
# (a/4 each for log loss, both AUCs and recall; a/2 for segments).


def comparison(rules: PromotionConfig) -> Comparison:
    """The guard beside live since it began, with a quarter of alpha."""
    return Comparison(rules.alpha / 6, 2.0 * rules.least_examples, rules.block_examples)


def recent_comparison(rules: PromotionConfig) -> Comparison:
    """The same, restarted after each ``window``, with a quarter of alpha for all windows together."""
    each = rules.alpha / 6 / max(1, math.ceil(rules.guard_examples / window(rules)))
    return Comparison(each, 2.0 * rules.least_examples, rules.block_examples)


def guard_engagement_rates(
    kinds: Sequence[str], rules: PromotionConfig, unwanted: Sequence[str] = UNWANTED
) -> EngagementRates:
    """Empty rates for a guard: since the promotion beside before it, with a quarter of alpha."""
    return EngagementRates(kinds, rules.alpha / 2, rules.canary_examples, unwanted)


class Calibration:
    """Calibration of live's predictions, with a quarter of alpha, by their error. ``over``: excess over
    ``_TIMES`` the label; ``under``: excess over the label divided by that. An ``over`` above 0, or an
    ``under`` below 0, is too far."""

    def __init__(self, rules: PromotionConfig) -> None:
        at = 2.0 * rules.least_examples
        self.over, self.under = (ClusteredMean(rules.alpha / 8, at) for _ in range(2))

    def add(self, pairs: PairedPredictions) -> None:
        over = pairs.live_N - _TIMES * pairs.labels_N
        under = pairs.live_N - pairs.labels_N / _TIMES
        self.over.add(pairs.users_N, over, pairs.loss_weights_N)
        self.under.add(pairs.users_N, under, pairs.loss_weights_N)


def judge_guard(evidence: GuardEvidence, rules: PromotionConfig) -> Rollback | Hold:
    """Decision about the live line on the current evidence. A final Hold ends the guard."""
    if evidence.failed:
        why = f"the former live line can't take over: {'; '.join(evidence.failed)}"
        return Hold(True, why, evidence)
    if objection := _objection(evidence, rules):
        return Rollback(objection, evidence)
    compared, so_far = evidence.compared, "nothing against what is live"
    if compared.loss.weight:
        so_far += f"; the former live line would gain {compared.loss.text} nats"
    count, final = f"{compared.examples} examples compared", True
    if compared.examples < rules.guard_examples:
        if 0 < rules.guard_hours <= evidence.hours:
            count = f"{rules.guard_hours:g} hours over, {count}"
        else:
            count = f"{compared.examples} of {rules.guard_examples} examples compared"
            final = False
    return Hold(final, f"{count}, {so_far}", evidence)


def _objection(evidence: GuardEvidence, rules: PromotionConfig) -> str:
    """Reason against live; empty if none."""
    if evidence.not_finite:
        return f"{evidence.not_finite} of live's predictions aren't finite"
    for when, compared in (("", evidence.compared), ("lately ", evidence.recent)):
        if reason := _worse(compared, rules):
            return when + reason
    engagement = evidence.served or CanaryEngagement()
    return _miscalibrated(evidence, rules) or _less_engaging(engagement, rules)


def _worse(compared: ComparisonResult, rules: PromotionConfig) -> str:
    """First measure in which live is known to be worse than what it replaced; empty if none."""
    if compared.users < LEAST_USERS:
        return ""
    loss, auc = rules.guard_loss_margin, rules.guard_auc_margin
    measures = {
        "log loss": (compared.loss, loss),
        "AUC": (compared.auc, auc),
        "AUC within users": (compared.user_auc, auc),
        "share retrieved of what viewers engage with": (compared.recall, rules.recall_margin),
    }
    for name, estimate in compared.segments.items():
        measures[f"log loss in {name}"] = estimate, loss + rules.segment_margin
    for name, (estimate, margin) in measures.items():
        if estimate.low > margin:
            worse = f"live's {name} is worse than the former live line's"
            return f"{worse}: {estimate.text}, allowed {margin}"
    return ""


def _miscalibrated(evidence: GuardEvidence, rules: PromotionConfig) -> str:
    """Reason if live's predictions are too far off and those of what it replaced are closer; else empty."""
    compared = evidence.compared
    live, guard = compared.live_calibration, compared.candidate_calibration
    far = evidence.over.low > 0 or evidence.under.high < 0
    if compared.users < LEAST_USERS or not far or log_distance(guard) >= log_distance(live):
        return ""
    return (
        f"live's predictions are {live:.3f} of what happens, expected {1 / _TIMES:.3f} to {_TIMES:.3f}; "
        f"those of the former live line {guard:.3f}"
    )


def _less_engaging(served: CanaryEngagement, rules: PromotionConfig) -> str:
    """Reason if live's own lists are worse than those of the time before; else empty."""
    if min(served.users, served.live_users) < LEAST_USERS:
        return ""
    most, enough = rules.degraded + served.live_degraded, rules.canary_examples
    # The share without a ranker is unknown for a time in which little was shown.
    shown = min(served.examples, served.live_examples)
    if shown >= enough and served.degraded > most:
        share = f"{served.degraded:.1%} of live's lists went without its ranker"
        return f"{share}, {served.live_degraded:.1%} before, expected at most {most:.1%}"
    return served.worse(rules.guard_engagement_margin, " than before")
