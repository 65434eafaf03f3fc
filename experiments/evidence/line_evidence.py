"""Accumulates the evidence on one line: folds records of ``scores`` into comparisons."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.evidence.gates import ScoreMoments, failures
from experiments.evidence.verdict import CanaryEngagement, EngagementRates, Evidence, window
from experiments.statistics.comparison import Comparison, ComparisonResult, PairedPredictions
from recsys.config.promotion_config import PromotionConfig
from recsys.events.records import Scores

Hits = NDArray[np.uint8]  # bit 0: live retrieves the item, bit 1: the candidate
Users = NDArray[np.int64]


@dataclass
class LineEvidence:
    """Evidence on one line: since it was proposed, and recent (since its stage began or a few thousand
    examples ago), so that a long good past hides nothing. ``comparison``, ``new_recent``: None for a line
    that isn't compared."""

    rules: PromotionConfig
    comparison: Comparison | None = None
    new_recent: Callable[[], Comparison] | None = None
    retrieves: bool = False  # its retrieval must be compared
    recent: Comparison | None = None
    scores: ScoreMoments = field(default_factory=ScoreMoments)
    recent_scores: ScoreMoments = field(default_factory=ScoreMoments)
    rates: EngagementRates | None = None  # of impressions, its own or live's
    not_finite: int = 0  # such predictions in these impressions
    figures: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    step: int = 0
    ended: ComparisonResult | None = None  # the result at its end
    ended_served: CanaryEngagement | None = None

    def __post_init__(self) -> None:
        self.restart_recent()

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

    def take(self, scores: Scores, live: tuple[str, int]) -> None:
        """Folds a record, if it compares with line and epoch ``live`` and is new. Raises ValueError for an
        invalid record, before any of it counts."""
        hits, users = _checked_hits(scores)
        pairs = paired_scores(scores)
        self.figures |= scores.figures
        self.refused = scores.refused or self.refused
        if scores.against == live and not 0 <= scores.step <= self.step:
            self.step = max(self.step, scores.step)
            self._compare(pairs, hits, users)

    def _compare(self, pairs: PairedPredictions, hits_E: Hits, users_E: Users) -> None:
        if self.comparison is None or self.recent is None:
            return
        for moments in (self.scores, self.recent_scores):
            moments.add(pairs.live_N, pairs.candidate_N, pairs.labels_N, pairs.loss_weights_N)
        self.add(finite(pairs))
        for compared in (self.comparison, self.recent):
            compared.add_hits(users_E, (hits_E & 1) > 0, (hits_E & 2) > 0)

    def add(self, pairs: PairedPredictions) -> None:
        """Adds predictions that are finite. The recent comparison begins anew after its window."""
        if self.recent is not None and self.recent.examples > window(self.rules):
            self.restart_recent()
        for compared in (self.comparison, self.recent):
            if compared is not None:
                compared.add(pairs)

    def restart_recent(self) -> None:
        """Restarts the recent comparison."""
        self.recent = None if self.new_recent is None else self.new_recent()
        self.recent_scores = ScoreMoments()

    def end(self) -> None:
        """Keeps the results and frees the accumulators."""
        self.ended, self.ended_served = self.compared, self.served
        self.comparison = self.recent = self.rates = None

    def evidence(self, hours: float) -> Evidence:
        """The current evidence. ``hours``: since the line's stage began."""
        failed = [self.refused] if self.refused else []
        if not self.ended:
            failed += failures(self.scores, self.rules, self.figures)
            failed += failures(self.recent_scores, self.rules)
        failed = list(dict.fromkeys(failed))
        return Evidence(self.compared, tuple(failed), self.served, self.recent_result, self.retrieves)


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
