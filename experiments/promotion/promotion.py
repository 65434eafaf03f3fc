"""Whether a candidate takes over: Promote, Hold or Rollback, as values with their evidence. Pure.

A candidate goes through stages: in ``shadow`` it scores the stream and nobody sees it; as ``canary`` it
answers a share of the users; then it is all. ``judge`` is called whenever there is new evidence, as often as
one likes. Somebody else acts on what it says (training/candidates/director.py).
"""

import math
from dataclasses import dataclass, field

from experiments.promotion.lifecycle import CANARY, SHADOW
from experiments.statistics.comparison import Comparison, ComparisonResult
from experiments.statistics.significance import AnytimeEstimate
from recsys.config.promotion_config import PromotionConfig

_LATELY = 2  # times ``least_examples``


@dataclass(frozen=True)
class CanaryEngagement:
    """What came of lists that the candidate answered, beside live's in the same time: the share of shown
    items with each kind of engagement, the candidate's minus live's. ``users`` are counted up to a few
    thousand."""

    examples: int = 0
    live_examples: int = 0
    gained: dict[str, AnytimeEstimate] = field(default_factory=dict)
    degraded: float = 0.0  # the share of the candidate's lists that went without its ranker
    live_degraded: float = 0.0
    users: int = 0
    live_users: int = 0


@dataclass(frozen=True)
class Evidence:
    """All that a decision rests on. ``failed``: sanity gates that the candidate didn't pass, each with the
    value and what was expected. ``compared``: since it was proposed; ``recent``: since the stage began, or a
    few thousand examples ago. ``retrieves``: whether what it would retrieve must have been looked at."""

    stage: str
    compared: ComparisonResult = ComparisonResult()
    failed: tuple[str, ...] = ()
    served: CanaryEngagement | None = None
    recent: ComparisonResult = ComparisonResult()
    retrieves: bool = False


@dataclass(frozen=True)
class Promote:
    """To the next stage."""

    to: str  # canary, or all
    why: str
    evidence: Evidence


@dataclass(frozen=True)
class Hold:
    """It stays where it is; ``final``: it is given up, and will not be looked at again."""

    final: bool
    why: str
    evidence: Evidence


@dataclass(frozen=True)
class Rollback:
    """It answers nobody any more, at once."""

    why: str
    evidence: Evidence


Verdict = Promote | Hold | Rollback


def comparison(rules: PromotionConfig) -> Comparison:
    """What a candidate is compared by. There are two of them, since it was proposed and lately, so each takes
    half of alpha."""
    return Comparison(rules.alpha / 2, 2.0 * rules.least_examples, rules.block_examples)


def window(rules: PromotionConfig) -> int:
    """Of how many examples ``lately`` is, at the most: then it begins anew."""
    return _LATELY * rules.least_examples


def judge(evidence: Evidence, rules: PromotionConfig) -> Verdict:
    """What to do with a candidate by all that is known of it now."""
    bad = _bad(evidence, rules)
    if bad:
        if evidence.stage == SHADOW:
            return Hold(True, bad, evidence)
        return Rollback(bad, evidence)
    if evidence.stage == SHADOW:
        return _in_shadow(evidence, rules)
    return _as_canary(evidence, rules)


def _bad(evidence: Evidence, rules: PromotionConfig) -> str:
    """Why the candidate must not go on; empty where nothing speaks against it."""
    if evidence.failed:
        return "; ".join(evidence.failed)
    for when, compared in (("", evidence.compared), ("lately ", evidence.recent)):
        if found := _worse(compared, rules):
            return when + found
    served = evidence.served
    if served is not None:
        if served.examples and served.degraded > rules.degraded:
            most = f"expected at most {rules.degraded:.1%}"
            return f"{served.degraded:.1%} of its lists went without its ranker, {most}"
        for kind, estimate in served.gained.items():
            if estimate.high < -rules.engagement_margin:
                return f"viewers give fewer {kind}: gained {estimate.text} an item"
    return ""


def _worse(compared: ComparisonResult, rules: PromotionConfig) -> str:
    """In what it is known to be worse; empty where it isn't."""
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


def _in_shadow(evidence: Evidence, rules: PromotionConfig) -> Verdict:
    compared = evidence.compared
    if compared.examples < rules.least_examples:
        why = f"{compared.examples} examples compared, expected {rules.least_examples} or more"
        return Hold(False, why, evidence)
    better = compared.loss.low > 0 or compared.auc.low > 0
    no_worse = compared.auc.low > -rules.auc_margin and compared.loss.low > -rules.loss_margin
    calibrated = abs(_log(compared.candidate_calibration)) <= max(
        math.log1p(rules.calibration), abs(_log(compared.live_calibration))
    )
    if evidence.retrieves and not compared.recall.weight:
        return Hold(False, "what it would retrieve wasn't looked at yet", evidence)
    if better and no_worse and calibrated:
        why = f"log loss gained {compared.loss.text} nats, AUC {compared.auc.text}"
        return Promote(CANARY, why, evidence)
    if compared.examples >= rules.most_examples:
        shown = f"nothing was shown by {compared.examples} examples"
        return Hold(True, f"{shown}: log loss gained {compared.loss.text} nats", evidence)
    return Hold(False, _open(better, no_worse, calibrated, compared), evidence)


def _open(better: bool, no_worse: bool, calibrated: bool, compared: ComparisonResult) -> str:
    if not better:
        return f"not told apart yet: log loss gained {compared.loss.text} nats"
    if not no_worse:
        other = f"AUC gained {compared.auc.text}, log loss {compared.loss.text} nats"
        return f"better in one measure, and not yet known to be no worse in the other: {other}"
    return f"its calibration is {compared.candidate_calibration:.3f}, live's {compared.live_calibration:.3f}"


def _as_canary(evidence: Evidence, rules: PromotionConfig) -> Verdict:
    served = evidence.served
    shown = 0 if served is None else served.examples
    if shown < rules.canary_examples:
        why = f"{shown} items shown to the canary's users, expected {rules.canary_examples}"
        return Hold(False, why, evidence)
    return Promote(
        "all", f"{shown} items shown to the canary's users, nothing against it", evidence
    )


def _log(ratio: float) -> float:
    """Of a calibration; far off where there is none."""
    return math.log(ratio) if ratio > 0 and math.isfinite(ratio) else math.inf
