"""Candidate: a line of a registry that wants to be live.

proposed ──► shadow ──► canary ──► taking over ──► live
                └──────────┴───────────┴──► ended: held for good, rolled back

In ``shadow`` it scores the stream unseen; as ``canary`` it answers a share of the users; then it answers all.
It may be judged as often as there is new evidence.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Final, Self

from experiments.evidence.line_evidence import LineEvidence
from experiments.evidence.verdict import (
    ALL,
    CANARY,
    LEAST_USERS,
    CanaryEngagement,
    Evidence,
    GoLive,
    Hold,
    Promote,
    Rollback,
    Verdict,
    log_distance,
)
from experiments.promotion.kinds.line_state import ENDED, SHADOW, LineState, ServedLines
from experiments.statistics.comparison import Comparison, ComparisonResult
from recsys.config.promotion_config import PromotionConfig
from recsys.events.control_records import Decision
from recsys.events.hashing import Id, uniform

TAKING_OVER: Final = "taking over"  # stage
_SEED: Final = 0  # changing it reassigns every user of every canary


@dataclass(frozen=True)
class CandidateState(LineState):
    """State of a candidate."""

    is_candidate: ClassVar[bool] = True
    answers: ClassVar[bool] = True

    def source(self, live_epoch: int) -> int | None:
        return None

    def after_decision(self, decision: Decision) -> Self:
        if decision.verdict == "promote":
            return replace(
                self,
                stage=CANARY if decision.to == CANARY else TAKING_OVER,
                share=decision.share or self.share,  # as before, until it is live
                epoch=decision.epoch,
                since_ms=decision.time_ms,
                why=decision.why,
            )
        if decision.verdict == "rollback" or decision.final:
            return self.moved(ENDED, decision.time_ms, decision.why)
        return replace(self, why=decision.why) if self.active else self

    @property
    def publishes(self) -> bool:
        return self.stage in (CANARY, TAKING_OVER)

    def serves(self, user_id: Id) -> bool:
        """Whether the canary answers a user: a hash of both, equal on every replica."""
        return uniform(_SEED, "canary", self.line, user_id) < self.share

    @property
    def moves_live(self) -> bool:
        return self.share > 0

    def new_evidence(self, rules: PromotionConfig, retrieves: bool) -> LineEvidence:
        return LineEvidence(rules, comparison(rules), partial(comparison, rules), retrieves)

    def served_lines(self, live: str, rules: PromotionConfig) -> ServedLines | None:
        """The canary since it began to answer, beside live."""
        own = f"{self.line}/0"
        return ServedLines(own, live, self.since_ms, rules.alpha, from_first=True) if self.share else None

    def judge(self, evidence: Evidence, rules: PromotionConfig) -> Verdict:
        if bad := _objection(evidence, rules):
            return Hold(True, bad, evidence) if self.stage == SHADOW else Rollback(bad, evidence)
        if self.stage == SHADOW:
            return _judge_shadow(evidence, rules)
        if self.stage == TAKING_OVER:
            return GoLive("its snapshot is being written", evidence)
        return _judge_canary(evidence, rules)

    def requested_rollback(self, why: str, evidence: Evidence) -> Rollback:
        return Rollback(why, evidence)


def comparison(rules: PromotionConfig) -> Comparison:
    """Comparison of a candidate with live. There are two, ``compared`` and ``recent``, each with half of
    alpha."""
    return Comparison(rules.alpha / 2, 2.0 * rules.least_examples, rules.block_examples)


def _objection(evidence: Evidence, rules: PromotionConfig) -> str:
    """Reason against the candidate; empty if none."""
    if evidence.failed:
        return "; ".join(evidence.failed)
    for when, compared in (("", evidence.compared), ("lately ", evidence.recent)):
        if reason := _worse(compared, rules):
            return when + reason
    served = evidence.served or CanaryEngagement()
    most = rules.degraded + served.live_degraded
    # The first lists of a canary that has just started say little about it.
    enough = served.users >= LEAST_USERS or served.examples >= rules.canary_examples
    if enough and served.degraded > most:
        share = f"{served.degraded:.1%} of its lists went without its ranker"
        return f"{share}, {served.live_degraded:.1%} of live's, expected at most {most:.1%}"
    return served.worse(rules.engagement_margin)


def _worse(compared: ComparisonResult, rules: PromotionConfig) -> str:
    """First measure in which the candidate is known to be worse; empty if none."""
    if compared.loss.high < 0:
        return f"its log loss is worse: gained {compared.loss.text} nats"
    if compared.auc.high < -rules.auc_margin:
        return f"its AUC is worse: gained {compared.auc.text}"
    if compared.user_auc.high < -rules.auc_margin:
        return f"its AUC within users is worse: gained {compared.user_auc.text}"
    if compared.recall.high < -rules.recall_margin:
        return f"it retrieves less of what viewers engage with: gained {compared.recall.text} of it"
    for name, estimate in compared.segments.items():
        if estimate.high < -rules.segment_margin:
            return f"its log loss is worse in {name}: gained {estimate.text} nats"
    return ""


def _judge_shadow(evidence: Evidence, rules: PromotionConfig) -> Verdict:
    compared = evidence.compared
    loss, auc = compared.loss, compared.auc
    if compared.examples < rules.least_examples:
        why = f"{compared.examples} examples compared, expected {rules.least_examples} or more"
        return Hold(False, why, evidence)
    better = loss.low > 0 or auc.low > 0
    no_worse = auc.low > -rules.auc_margin and loss.low > -rules.loss_margin
    limit = max(math.log1p(rules.calibration), log_distance(compared.live_calibration))
    calibrated = log_distance(compared.candidate_calibration) <= limit
    if evidence.retrieves and not compared.recall.weight:
        return Hold(False, "its retrieval wasn't compared yet", evidence)
    if better and no_worse and calibrated:
        return Promote(CANARY, f"log loss gained {loss.text} nats, AUC {auc.text}", evidence)
    if compared.examples >= rules.most_examples:
        why = f"no difference after {compared.examples} examples: log loss gained {loss.text} nats"
        return Hold(True, why, evidence)
    if not better:
        why = f"no significant difference yet: log loss gained {loss.text} nats"
    elif not no_worse:
        gains = f"AUC gained {auc.text}, log loss {loss.text} nats"
        why = f"better in one measure, and not yet known to be no worse in the other: {gains}"
    else:
        own, live = compared.candidate_calibration, compared.live_calibration
        why = f"its calibration is {own:.3f}, live's {live:.3f}"
    return Hold(False, why, evidence)


def _judge_canary(evidence: Evidence, rules: PromotionConfig) -> Verdict:
    shown = 0 if evidence.served is None else evidence.served.examples
    count = f"{shown} items shown to the canary's users"
    if shown < rules.canary_examples:
        return Hold(False, f"{count}, expected {rules.canary_examples}", evidence)
    return Promote(ALL, f"{count}, nothing against it", evidence)
