"""What is known of one candidate, or guard: the records of ``scores`` folded into comparisons, and back into
the numbers that stand in a decision."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.promotion import gates, guard
from experiments.promotion.canary_engagement import EngagementRates
from experiments.promotion.guard import GuardEvidence
from experiments.promotion.promotion import CanaryEngagement, Evidence, comparison, window
from experiments.statistics.comparison import Comparison, ComparisonResult, PairedPredictions
from recsys.config.promotion_config import PromotionConfig
from recsys.events.records import Scores


class Heard(NamedTuple):
    """What a record of ``scores`` says, looked over. Hits (E,) are as there."""

    pairs: PairedPredictions
    hits_E: NDArray[np.uint8]
    hit_users_E: NDArray[np.int64]
    figures: dict[str, float]


@dataclass
class Case:
    """All that is known of one candidate: since it was proposed, and lately, since its stage began or a few
    thousand examples ago, so that a long good past hides nothing. ``missed``: of a guard alone."""

    comparison: Comparison | None
    recent: Comparison | None
    scores: gates.ScoreMoments = field(default_factory=gates.ScoreMoments)
    recent_scores: gates.ScoreMoments = field(default_factory=gates.ScoreMoments)
    rates: EngagementRates | None = None  # of what its lists, or live's, have shown
    missed: guard.Calibration | None = None
    not_finite: int = 0  # of live's predictions since a guard began
    figures: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    step: int = 0
    said: str = ""  # the newest judgement that was told
    ended: ComparisonResult | None = None  # what was known at its end
    ended_served: CanaryEngagement | None = None

    @property
    def compared(self) -> ComparisonResult:
        if self.ended is not None:
            return self.ended
        return ComparisonResult() if self.comparison is None else self.comparison.result()

    @property
    def lately(self) -> ComparisonResult:
        return ComparisonResult() if self.recent is None else self.recent.result()

    @property
    def served(self) -> CanaryEngagement | None:
        """What viewers did with what was shown; None where nothing was yet."""
        return self.ended_served if self.rates is None else self.rates.result()

    def take(self, said: Scores, live: tuple[str, int], rules: PromotionConfig) -> None:
        """What the candidate said of some examples beside live, where that is line and epoch ``live`` and
        wasn't said before. Raises ValueError for what makes no sense, before any of it counts."""
        heard = heard_of(said)
        self.figures |= heard.figures
        self.refused = said.refused or self.refused
        if said.against == live and not 0 <= said.step <= self.step:
            self.step = max(self.step, said.step)
            self._compare(heard, rules)

    def _compare(self, heard: Heard, rules: PromotionConfig) -> None:
        if self.comparison is None or self.recent is None:
            return
        pairs, hits, users, _ = heard
        for scores in (self.scores, self.recent_scores):
            scores.add(pairs.live_N, pairs.candidate_N, pairs.labels_N)
        if self.recent.examples > window(rules):
            self.begin_lately(rules)
        pairs = finite(pairs)
        for its in (self.comparison, self.recent):
            its.add(pairs)
            if len(hits):
                its.add_hits(users, (hits & 1) > 0, (hits & 2) > 0)
        if self.missed is not None:
            self.missed.add(pairs)

    def begin_lately(self, rules: PromotionConfig) -> None:
        """What is compared from now on is what was lately."""
        self.recent = comparison(rules) if self.missed is None else guard.lately(rules)
        self.recent_scores = gates.ScoreMoments()

    def end(self) -> None:
        """The numbers stay, what they were made of goes."""
        self.ended, self.ended_served = self.compared, self.served
        self.comparison = self.recent = self.rates = self.missed = None

    def failed(self, rules: PromotionConfig) -> list[str]:
        """The sanity gates that a candidate didn't pass."""
        failed = [self.refused] if self.refused else []
        if not self.ended:
            failed += gates.failures(self.scores, rules, _sizes(self.figures), _picks(self.figures))
            failed += gates.failures(self.recent_scores, rules)
        return list(dict.fromkeys(failed))

    def guard_evidence(self, stage: str, hours: float) -> GuardEvidence:
        """Of a guard that began so long ago. That its scores are far from live's says nothing of which of the
        two is odd."""
        failed = [self.refused] if self.refused else []
        if self.scores.not_finite:
            failed.append(f"{self.scores.not_finite} of its scores aren't finite")
        return GuardEvidence(
            stage,
            self.compared,
            tuple(failed),
            self.served,
            self.lately,
            missed=guard.CalibrationGap() if self.missed is None else self.missed.result(),
            not_finite=self.not_finite,
            hours=hours,
        )


def begun(rules: PromotionConfig, guards: bool = False) -> Case:
    """Of one that begins now."""
    if guards:
        return Case(guard.comparison(rules), guard.lately(rules), missed=guard.Calibration(rules))
    return Case(comparison(rules), comparison(rules))


def heard_of(said: Scores) -> Heard:
    """The arrays of a record. Raises ValueError where they don't fit each other, or where what must be a
    number isn't: probabilities alone may be none, for that is what a broken model says."""
    hits, users = np.frombuffer(said.hits, np.uint8), np.frombuffer(said.hit_users, np.int64)
    if len(hits) != len(users):
        raise ValueError(
            f"hits has {len(hits)} entries, expected one for each of hit_users, {len(users)}"
        )
    odd = {name: value for name, value in said.figures.items() if not math.isfinite(value)}
    if odd:
        raise ValueError(f"figures has {odd}, expected finite numbers")
    return Heard(pairs_of(said), hits, users, said.figures)


def pairs_of(said: Scores) -> PairedPredictions:
    """What a record says of examples. Raises ValueError as ``heard_of`` does."""
    users, bits = np.frombuffer(said.users, np.int64), np.frombuffer(said.segments, np.int64)
    labels = np.frombuffer(said.labels, np.uint8)
    weights = np.frombuffer(said.weights, np.float32).astype(np.float64) if said.weights else None
    if said.names and len(bits) != len(users):
        raise ValueError(
            f"segments has {len(bits)} entries, expected one for each of users, {len(users)}"
        )
    if weights is not None and len(weights) != len(users):
        raise ValueError(
            f"weights has {len(weights)} entries, expected none or one for each of users, {len(users)}"
        )
    if weights is not None and not (np.isfinite(weights) & (weights > 0)).all():
        raise ValueError(
            "weights has entries that aren't finite and above 0, expected none of these"
        )
    if (labels > 1).any():
        raise ValueError(f"labels has a {labels.max()}, expected 0 and 1")
    return PairedPredictions(
        users,
        np.frombuffer(said.live, np.float32).astype(np.float64),
        np.frombuffer(said.candidate, np.float32).astype(np.float64),
        labels.astype(np.float64),
        {name: (bits >> n & 1).astype(np.bool_) for n, name in enumerate(said.names)},
        weights,
    )


def finite(pairs: PairedPredictions) -> PairedPredictions:
    """Without what either gave no number for."""
    fine = np.isfinite(pairs.candidate_N) & np.isfinite(pairs.live_N)
    if fine.all():
        return pairs
    return PairedPredictions(
        pairs.users_N[fine],
        pairs.live_N[fine],
        pairs.candidate_N[fine],
        pairs.labels_N[fine],
        {name: mask[fine] for name, mask in pairs.segments.items()},
        None if pairs.weights_N is None else pairs.weights_N[fine],
    )


def numbers(evidence: Evidence) -> dict[str, float]:
    """The evidence as it is written down; what isn't known is left out."""
    its = evidence.compared
    found = {
        "examples": its.examples, "users": its.users, "live_loss": its.live_loss,
        "live_calibration": its.live_calibration, "calibration": its.candidate_calibration,
    }  # fmt: skip
    estimates = {"loss": its.loss, "auc": its.auc, "user auc": its.user_auc, "recall": its.recall}
    estimates |= {f"loss in {name}": e for name, e in its.segments.items()}
    if evidence.served is not None:
        found |= {"shown": evidence.served.examples, "degraded": evidence.served.degraded}
        estimates |= {f"share of {kind}": e for kind, e in evidence.served.gained.items()}
    if isinstance(evidence, GuardEvidence):
        found |= {"not_finite": evidence.not_finite, "hours": evidence.hours}
        if evidence.served is not None:
            found["users shown"] = evidence.served.users
            found["users shown before"] = evidence.served.live_users
            found["degraded before"] = evidence.served.live_degraded
            found["shown before"] = evidence.served.live_examples
    for name, estimate in estimates.items():
        found |= {
            f"{name} gained": estimate.mean,
            f"{name} at least": estimate.low,
            f"{name} at most": estimate.high,
        }
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _sizes(figures: dict[str, float]) -> tuple[gates.ModelCost, gates.ModelCost] | None:
    names = ("live_rank_us", "live_bytes", "rank_us", "bytes")
    if not all(name in figures for name in names):
        return None
    live_us, live_bytes, us, nbytes = (figures[name] for name in names)
    return gates.ModelCost(live_us, live_bytes), gates.ModelCost(us, nbytes)


def _picks(figures: dict[str, float]) -> gates.PickConcentration | None:
    if "picks" not in figures or "live_picks" not in figures:
        return None
    return gates.PickConcentration(figures["live_picks"], figures["picks"], int(figures.get("pickers", 0)))
