"""Sanity gates that a candidate must pass before it is compared.

A plainly broken model is refused by its first examples instead of a test that needs thousands.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys.config.promotion_config import PromotionConfig

_SMALLEST = 1e-6
_USUAL = 2.0  # an unremarkable spread of logits
_AT_LEAST = 200  # scores before their moments are checked


@dataclass
class ScoreMoments:
    """Running sums of both models' logits on the same examples, and of the labels."""

    count: int = 0
    not_finite: int = 0
    positives: float = 0.0
    live: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # sum, sum of squares
    candidate: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def add(
        self,
        live_N: NDArray[np.float64],
        candidate_N: NDArray[np.float64],
        labels_N: NDArray[np.float64],
    ) -> None:
        """Adds probabilities of the same examples. Counts and skips those that aren't finite."""
        finite = np.isfinite(candidate_N)
        self.not_finite += int((~finite).sum())
        finite &= np.isfinite(live_N)
        for sums, values in ((self.live, live_N[finite]), (self.candidate, candidate_N[finite])):
            logits = logits_of(values)
            sums += logits.sum(), (logits**2).sum()
        self.count += int(finite.sum())
        self.positives += float(labels_N[finite].sum())


@dataclass(frozen=True)
class ModelCost:
    """Cost of a model: microseconds to rank a list, bytes of rows and dense parameters."""

    rank_us: float
    nbytes: float


@dataclass(frozen=True)
class PickConcentration:
    """Share of each model's ten commonest items among its picks for the same users."""

    live: float
    candidate: float
    users: int


def failures(
    scores: ScoreMoments,
    rules: PromotionConfig,
    costs: tuple[ModelCost, ModelCost] | None = None,
    picks: PickConcentration | None = None,
) -> list[str]:
    """Gates that a candidate fails, each with value and expectation. ``costs``: live's and the
    candidate's."""
    failed = [*_score_failures(scores, rules)]
    if costs is not None:
        live, candidate = costs
        if candidate.rank_us > rules.latency * live.rank_us:
            failed.append(
                f"it takes {candidate.rank_us:.0f} µs to rank a list, expected at most {rules.latency} times "
                f"live's {live.rank_us:.0f}"
            )
        if candidate.nbytes > rules.memory * live.nbytes:
            failed.append(
                f"it has {candidate.nbytes / 2**20:.1f} MiB, expected at most {rules.memory} times live's "
                f"{live.nbytes / 2**20:.1f}"
            )
    if picks is not None and picks.candidate > max(rules.concentration * picks.live, 0.2):
        failed.append(
            f"its ten commonest picks have {picks.candidate:.0%} of {picks.users} users' lists, expected at "
            f"most {rules.concentration} times live's {picks.live:.0%}"
        )
    return failed


def _score_failures(scores: ScoreMoments, rules: PromotionConfig) -> Iterator[str]:
    if scores.not_finite:
        yield f"{scores.not_finite} of its scores aren't finite"
    if scores.count < _AT_LEAST:
        return
    live, live_spread = _moments(scores.live, scores)
    mean, spread = _moments(scores.candidate, scores)
    base_rate = float(logits_of(np.array(scores.positives / scores.count)))
    if min(abs(mean - live), abs(mean - base_rate)) > rules.score_shift:
        yield (
            f"its mean logit is {mean:.2f}, expected within {rules.score_shift} of live's {live:.2f} or of "
            f"what happens, {base_rate:.2f}"
        )
    most = max(rules.score_spread * live_spread, _USUAL)  # an untrained live model has no spread
    least = min(live_spread, _USUAL) / rules.score_spread
    if not least <= spread <= most:
        yield f"the spread of its logits is {spread:.2f}, expected {least:.2f} to {most:.2f}"


def _moments(sums: NDArray[np.float64], scores: ScoreMoments) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = sums[0] / scores.count
    return float(mean), float(np.sqrt(max(sums[1] / scores.count - mean**2, 0.0)))


def logits_of(probabilities_N: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probabilities_N, _SMALLEST, 1 - _SMALLEST)
    out: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return out
