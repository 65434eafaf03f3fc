"""Promotion decisions: Promote, Hold or Rollback, as values with their evidence.

A candidate in ``shadow`` scores the stream unseen; as ``canary`` it answers a share of the users; then it
answers all. ``judge`` may be called as often as there is new evidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.promotion.lifecycle import CANARY, SHADOW
from experiments.statistics.comparison import Comparison, ComparisonResult
from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from recsys.config.policy_config import UNWANTED
from recsys.config.promotion_config import PromotionConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
_RECENT: Final = 2  # times ``least_examples``
_MAX_KINDS: Final = 8  # labels compared: each takes its share of alpha
_MAX_USERS: Final = 4_096  # counted in either group
_LEAST_USERS: Final = 10  # of a group, before there are bounds and its lists without a ranker count


@dataclass(frozen=True)
class CanaryEngagement:
    """Engagement with the canary's lists and with live's in the same time. ``gained``: difference of the
    share of shown items with each kind of engagement. ``users`` are counted up to a few thousand.
    ``unwanted``: kinds of which fewer are better."""

    examples: int = 0
    live_examples: int = 0
    gained: dict[str, AnytimeEstimate] = field(default_factory=dict)
    degraded: float = 0.0  # share of the candidate's items shown without its ranker
    live_degraded: float = 0.0
    users: int = 0
    live_users: int = 0
    unwanted: Sequence[str] = UNWANTED

    def worse(self, margin: float, than: str = "") -> str:
        """First kind of engagement that is known to be worse by more than a margin; empty if none."""
        for kind, estimate in self.gained.items():
            unwanted = kind in self.unwanted
            if estimate.low > margin if unwanted else estimate.high < -margin:
                word = "more" if unwanted else "fewer"
                return f"viewers give {word} {kind}{than}: gained {estimate.text} an item"
        return ""


class EngagementRates:
    """Engagement rates of items shown by the canary and by live. The groups have different users, so the
    bounds of a difference combine those of both means."""

    def __init__(
        self, kinds: Sequence[str], alpha: float, tight_at: float, unwanted: Sequence[str] = UNWANTED
    ) -> None:
        self.kinds, self._unwanted = tuple(kinds[:_MAX_KINDS]), unwanted
        each = alpha / (4 * max(1, len(self.kinds)))
        self._means = {
            group: {kind: ClusteredMean(each, tight_at, at_least=_LEAST_USERS) for kind in self.kinds}
            for group in (True, False)
        }
        self._examples = {True: 0, False: 0}
        self._shown, self._unranked = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
        self._users: dict[bool, set[int]] = {True: set(), False: set()}

    def add(
        self, users_N: Ints, canary_N: Mask, labels_NK: Floats, ranked_N: Mask, weights_N: Floats
    ) -> None:
        """Adds items: user, whether of the canary, labels, whether ranked, and how many each represents."""
        for group in (True, False):
            chosen = canary_N == group
            users, labels, weights = users_N[chosen], labels_NK[chosen], weights_N[chosen]
            self._examples[group] += len(users)
            self._shown[group] += float(weights.sum())
            self._unranked[group] += float(weights_N[chosen & ~ranked_N].sum())
            if len(self._users[group]) < _MAX_USERS:
                self._users[group].update(users.tolist())
            for k, kind in enumerate(self.kinds):
                self._means[group][kind].add(users, labels[:, k], weights)

    def result(self) -> CanaryEngagement:
        gained = {}
        for kind in self.kinds:
            a, b = (self._means[group][kind].estimate() for group in (True, False))
            bounds = (a.mean - b.mean, a.low - b.high, a.high - b.low)
            gained[kind] = AnytimeEstimate(*bounds, min(a.weight, b.weight))
        degraded = {g: self._unranked[g] / max(1.0, shown) for g, shown in self._shown.items()}
        return CanaryEngagement(
            self._examples[True], self._examples[False], gained, degraded[True], degraded[False],
            len(self._users[True]), len(self._users[False]), self._unwanted,
        )  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """Basis of a decision. ``failed``: failed sanity gates, with value and expectation. ``compared``: since
    the proposal; ``recent``: since the stage began, or a few thousand examples ago. ``retrieves``: retrieval
    must have been compared."""

    stage: str
    compared: ComparisonResult = ComparisonResult()
    failed: tuple[str, ...] = ()
    served: CanaryEngagement | None = None
    recent: ComparisonResult = ComparisonResult()
    retrieves: bool = False


@dataclass(frozen=True)
class Promote:
    """Promotion to the next stage."""

    to: str  # canary, or all
    why: str
    evidence: Evidence


@dataclass(frozen=True)
class Hold:
    """No change; ``final``: the candidate is given up."""

    final: bool
    why: str
    evidence: Evidence


@dataclass(frozen=True)
class Rollback:
    """The candidate stops answering at once."""

    why: str
    evidence: Evidence


Verdict = Promote | Hold | Rollback


def comparison(rules: PromotionConfig) -> Comparison:
    """Comparison of a candidate with live. There are two, ``compared`` and ``recent``, each with half of
    alpha."""
    return Comparison(rules.alpha / 2, 2.0 * rules.least_examples, rules.block_examples)


def window(rules: PromotionConfig) -> int:
    """Most examples of the recent comparison, after which it begins anew."""
    return _RECENT * rules.least_examples


def judge(evidence: Evidence, rules: PromotionConfig) -> Verdict:
    """Decision about a candidate on the current evidence."""
    if bad := _objection(evidence, rules):
        return Hold(True, bad, evidence) if evidence.stage == SHADOW else Rollback(bad, evidence)
    return (_judge_shadow if evidence.stage == SHADOW else _judge_canary)(evidence, rules)


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
    enough = served.users >= _LEAST_USERS or served.examples >= rules.canary_examples
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
    return Promote("all", f"{count}, nothing against it", evidence)


def log_distance(calibration: float) -> float:
    """|log| of predicted / observed; infinite without observations."""
    if calibration > 0 and math.isfinite(calibration):
        return abs(math.log(calibration))
    return math.inf
