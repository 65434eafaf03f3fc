"""Guard: the former live line, which watches a promotion and may take live back.

shadow ──► taking back ──► ended: it is live again
   └──► ended: nothing was found, or another is live

It begins with the live record, keeps learning, answers nobody and is compared with live as a candidate is,
so gains are the guard's: above 0 live is worse. Live must be worse by more than a margin, for two reasons: it
shows more of what it overrates, which counts against it, and the guard scores an example a moment later than
live did.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Final, Self

from experiments.evidence.line_evidence import LineEvidence
from experiments.evidence.verdict import (
    CanaryEngagement,
    Evidence,
    Hold,
    Rollback,
    TakeBack,
    Verdict,
    log_distance,
    window,
)
from experiments.promotion.kinds.line_state import ENDED, SHADOW, LineState, ServedLines
from experiments.statistics.comparison import Comparison, ComparisonResult, PairedPredictions
from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Candidate, Decision, Live, ModelSize

GUARD: Final = "guard"  # kind of its record
TAKING_BACK: Final = "taking back"  # stage
_PREFIX: Final = f"{GUARD}-"  # of its name, before the epoch that it guards against
_BEFORE_MS: Final = 1_800_000  # compared time before a line was live: a longer one differs more
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

    def _own_numbers(self) -> dict[str, float]:
        values = {"not_finite": float(self.not_finite), "hours": self.hours}
        if self.served is not None:
            values |= {
                "users shown": self.served.users,
                "users shown before": self.served.live_users,
                "degraded before": self.served.live_degraded,
                "shown before": self.served.live_examples,
            }
        return values


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


def engagement_alpha(rules: PromotionConfig) -> float:
    """Probability of a wrong bound on engagement since the promotion beside before it: a quarter of alpha,
    for one-sided bounds."""
    return rules.alpha / 2


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


class GuardedEvidence(LineEvidence):
    """Accumulates evidence on a live line beside its guard. ``calibration``: of live's predictions."""

    def __init__(self, rules: PromotionConfig) -> None:
        super().__init__(rules, comparison(rules), partial(recent_comparison, rules))
        self.calibration: Calibration | None = Calibration(rules)

    def add(self, pairs: PairedPredictions) -> None:
        super().add(pairs)
        if self.calibration is not None:
            self.calibration.add(pairs)

    def end(self) -> None:
        super().end()
        self.calibration = None

    def evidence(self, hours: float) -> GuardEvidence:
        """As of a guard; the distance between its scores and live's is no gate."""
        failed = [self.refused] if self.refused else []
        if self.scores.not_finite:
            failed.append(f"{self.scores.not_finite} of its scores aren't finite")
        of_live, none = self.calibration, AnytimeEstimate()
        return GuardEvidence(
            self.compared, tuple(failed), self.served, self.recent_result,
            over=of_live.over.estimate() if of_live else none,
            under=of_live.under.estimate() if of_live else none,
            not_finite=self.not_finite, hours=hours,
        )  # fmt: skip


@dataclass(frozen=True)
class GuardState(LineState):
    """State of a guard. ``live``: the record of the line that it guards against."""

    live: Live = field(kw_only=True)

    priority: ClassVar[int] = 0

    @classmethod
    def begin_beside(cls, live: Live, replaced: ModelSize | None) -> "GuardState | None":
        if not live.guarded:
            return None
        line = f"{_PREFIX}{live.epoch}"
        record = Candidate(line=line, registry="", kind=GUARD, time_ms=live.time_ms, size=replaced)
        return cls(record, since_ms=live.time_ms, live=live)

    @classmethod
    def reserves(cls, name: str) -> str:
        if name.startswith(_PREFIX):
            return f"{name} is a name of a guard: add the candidate under another one"
        return ""

    def source(self, live_epoch: int) -> int:
        return self.live.parent_epoch

    @property
    def kept_epoch(self) -> int:
        """The live line learns the examples after it again if it is rolled back."""
        return self.live.parent_epoch

    def after_live(self, live: Live, first: bool) -> Self:
        if self.active and live.candidate:
            why = f"{live.line}/{live.epoch} is live, and has a guard of its own"
            return self.moved(ENDED, live.time_ms, why)
        return super().after_live(live, first)

    def after_decision(self, decision: Decision) -> Self:
        if self.active and decision.verdict == "rollback":
            return self.moved(TAKING_BACK, decision.time_ms, decision.why)
        return super().after_decision(decision)

    @property
    def moves_live(self) -> bool:
        return self.stage == TAKING_BACK

    def new_evidence(self, rules: PromotionConfig, retrieves: bool) -> GuardedEvidence:
        return GuardedEvidence(rules)

    def served_lines(self, live: str, rules: PromotionConfig) -> ServedLines | None:
        """The live line, beside the epoch before in the half hour before. A guard that takes live back needs
        no more evidence."""
        if self.stage != SHADOW:
            return None
        own, other = (f"{self.live.line}/{epoch}" for epoch in (self.live.epoch, self.live.parent_epoch))
        return ServedLines(own, other, self.live.time_ms - _BEFORE_MS, engagement_alpha(rules))

    def judge(self, evidence: Evidence, rules: PromotionConfig) -> Verdict:
        """Verdict on the live line. A final Hold ends the guard."""
        assert isinstance(evidence, GuardEvidence), "made by its own accumulator"
        if self.stage == TAKING_BACK:
            return TakeBack(self.why, evidence)
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

    def requested_rollback(self, why: str, evidence: Evidence) -> Hold:
        """The guard ends, and live stays."""
        return Hold(True, why, evidence)

    def can_take_back(self, live: Live, evidence: Evidence) -> bool:
        return self.live.epoch == live.epoch and self.stage == SHADOW and not evidence.failed


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
