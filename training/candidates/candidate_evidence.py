"""Accumulates the evidence on one candidate, or guard: folds records of ``scores`` into comparisons."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.promotion import gates, guard
from experiments.promotion.guard import GuardEvidence
from experiments.promotion.promotion import CanaryEngagement, EngagementRates, Evidence, comparison, window
from experiments.statistics.comparison import Comparison, ComparisonResult, PairedPredictions
from experiments.statistics.significance import AnytimeEstimate
from recsys.config.promotion_config import PromotionConfig
from recsys.events.records import Scores

Hits = NDArray[np.uint8]  # bit 0: live retrieves the item, bit 1: the candidate
Users = NDArray[np.int64]


@dataclass
class CandidateEvidence:
    """Evidence on one candidate: since it was proposed, and recent (since its stage began or a few thousand
    examples ago), so that a long good past hides nothing. ``calibration``: of live's
    predictions, for a guard alone."""

    comparison: Comparison | None
    recent: Comparison | None
    scores: gates.ScoreMoments = field(default_factory=gates.ScoreMoments)
    recent_scores: gates.ScoreMoments = field(default_factory=gates.ScoreMoments)
    rates: EngagementRates | None = None  # of impressions, its own or live's
    calibration: guard.Calibration | None = None
    not_finite: int = 0  # predictions of live since a guard began
    figures: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    step: int = 0
    opinion: str = ""  # the newest verdict that changed nothing
    ended: ComparisonResult | None = None  # the result at its end
    ended_served: CanaryEngagement | None = None

    @property
    def compared(self) -> ComparisonResult:
        if self.ended is not None:
            return self.ended
        return ComparisonResult() if self.comparison is None else self.comparison.result()

    @property
    def recent_result(self) -> ComparisonResult:
        return ComparisonResult() if self.recent is None else self.recent.result()

    @property
    def served(self) -> CanaryEngagement | None:
        """Engagement with impressions; None before the first."""
        return self.ended_served if self.rates is None else self.rates.result()

    def take(self, scores: Scores, live: tuple[str, int], rules: PromotionConfig) -> None:
        """Folds a record, if it compares with line and epoch ``live`` and is new. Raises ValueError for an
        invalid record, before any of it counts."""
        hits, users = _checked_hits(scores)
        pairs = paired_scores(scores)
        self.figures |= scores.figures
        self.refused = scores.refused or self.refused
        if scores.against == live and not 0 <= scores.step <= self.step:
            self.step = max(self.step, scores.step)
            self._compare(pairs, hits, users, rules)

    def _compare(
        self, pairs: PairedPredictions, hits_E: Hits, users_E: Users, rules: PromotionConfig
    ) -> None:
        if self.comparison is None or self.recent is None:
            return
        for moments in (self.scores, self.recent_scores):
            moments.add(pairs.live_N, pairs.candidate_N, pairs.labels_N, pairs.loss_weights_N)
        if self.recent.examples > window(rules):
            self.restart_recent(rules)
        pairs = finite(pairs)
        for compared in (self.comparison, self.recent):
            compared.add(pairs)
            compared.add_hits(users_E, (hits_E & 1) > 0, (hits_E & 2) > 0)
        if self.calibration is not None:
            self.calibration.add(pairs)

    def restart_recent(self, rules: PromotionConfig) -> None:
        """Restarts the recent comparison."""
        is_guard = self.calibration is not None
        self.recent = guard.recent_comparison(rules) if is_guard else comparison(rules)
        self.recent_scores = gates.ScoreMoments()

    def end(self) -> None:
        """Keeps the results and frees the accumulators."""
        self.ended, self.ended_served = self.compared, self.served
        self.comparison = self.recent = self.rates = self.calibration = None

    def failed(self, rules: PromotionConfig) -> list[str]:
        """Sanity gates that the candidate failed."""
        failed = [self.refused] if self.refused else []
        if not self.ended:
            failed += gates.failures(self.scores, rules, self.figures)
            failed += gates.failures(self.recent_scores, rules)
        return list(dict.fromkeys(failed))

    def guard_evidence(self, stage: str, hours: float) -> GuardEvidence:
        """Evidence of a guard that began ``hours`` ago, without the distance between its scores and
        live's."""
        failed = [self.refused] if self.refused else []
        if self.scores.not_finite:
            failed.append(f"{self.scores.not_finite} of its scores aren't finite")
        of_live, none = self.calibration, AnytimeEstimate()
        return GuardEvidence(
            stage, self.compared, tuple(failed), self.served, self.recent_result,
            over=of_live.over.estimate() if of_live else none,
            under=of_live.under.estimate() if of_live else none,
            not_finite=self.not_finite, hours=hours,
        )  # fmt: skip


def new_evidence(rules: PromotionConfig, guards: bool = False) -> CandidateEvidence:
    """Empty evidence of a candidate, or of a guard."""
    if guards:
        recent, calibration = guard.recent_comparison(rules), guard.Calibration(rules)
        return CandidateEvidence(guard.comparison(rules), recent, calibration=calibration)
    return CandidateEvidence(comparison(rules), comparison(rules))


def _checked_hits(scores: Scores) -> tuple[Hits, Users]:
    """Hits (E,) of a record with their users. Raises ValueError if they, or the figures, are invalid."""
    hits_E = np.frombuffer(scores.hits, np.uint8)
    users_E = np.frombuffer(scores.hit_users, np.int64)
    _check_length("hits", hits_E, "hit_users", users_E)
    infinite = {name: value for name, value in scores.figures.items() if not math.isfinite(value)}
    if infinite:
        raise ValueError(f"figures has {infinite}, expected finite numbers")
    return hits_E, users_E


def _check_length(name: str, array: NDArray[Any], of: str, others: Users) -> None:
    if len(array) != len(others):
        expected = f"one for each of {of}, {len(others)}"
        raise ValueError(f"{name} has {len(array)} entries, expected {expected}")


def paired_scores(scores: Scores) -> PairedPredictions:
    """Decodes the examples of a record. Raises ValueError if arrays don't fit each other, or for a number
    that isn't finite; except for probabilities, since a broken model gives such."""
    users, bits = np.frombuffer(scores.users, np.int64), np.frombuffer(scores.segments, np.int64)
    labels = np.frombuffer(scores.labels, np.uint8)
    weights = None
    if scores.names:
        _check_length("segments", bits, "users", users)
    if scores.weights:
        weights = np.frombuffer(scores.weights, np.float32).astype(np.float64)
        _check_length("weights", weights, "users", users)
        if not (np.isfinite(weights) & (weights > 0)).all():
            raise ValueError("weights has entries that aren't finite and above 0, expected none")
    if (labels > 1).any():
        raise ValueError(f"labels has a {labels.max()}, expected 0 and 1")
    return PairedPredictions(
        users,
        np.frombuffer(scores.live, np.float32).astype(np.float64),
        np.frombuffer(scores.candidate, np.float32).astype(np.float64),
        labels.astype(np.float64),
        {name: (bits >> n & 1).astype(np.bool_) for n, name in enumerate(scores.names)},
        weights,
    )


def finite(pairs: PairedPredictions) -> PairedPredictions:
    """Drops examples for which either model gave no finite number."""
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


def evidence_numbers(evidence: Evidence) -> dict[str, float]:
    """The evidence as stored in a decision; unknown values are left out."""
    compared, served = evidence.compared, evidence.served
    values = {
        "examples": compared.examples,
        "users": compared.users,
        "live_loss": compared.live_loss,
        "live_calibration": compared.live_calibration,
        "calibration": compared.candidate_calibration,
    }
    estimates = {
        "loss": compared.loss,
        "auc": compared.auc,
        "user auc": compared.user_auc,
        "recall": compared.recall,
    }
    estimates |= {f"loss in {name}": e for name, e in compared.segments.items()}
    if served is not None:
        values |= {"shown": served.examples, "degraded": served.degraded}
        estimates |= {f"share of {kind}": e for kind, e in served.gained.items()}
    if isinstance(evidence, GuardEvidence):
        values |= {"not_finite": evidence.not_finite, "hours": evidence.hours}
        if served is not None:
            values |= {
                "users shown": served.users,
                "users shown before": served.live_users,
                "degraded before": served.live_degraded,
                "shown before": served.live_examples,
            }
    elif served is not None:
        values["live degraded"] = served.live_degraded
    for name, estimate in estimates.items():
        bounds = {"gained": estimate.mean, "at least": estimate.low, "at most": estimate.high}
        values |= {f"{name} {bound}": value for bound, value in bounds.items()}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
