"""Sanity gates that a candidate must pass before it is compared.

A plainly broken model is refused by its first examples instead of a test that needs thousands.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.promotion_config import PromotionConfig

Floats = NDArray[np.float64]
_SMALLEST = 1e-6
_USUAL = 2.0  # an unremarkable spread of logits
_AT_LEAST = 200  # scores before their moments are checked
_COSTS: Final = ("live_rank_us", "rank_us", "live_bytes", "bytes")
_NO_FIGURES: Final[Mapping[str, float]] = {}


@dataclass
class ScoreMoments:
    """Running sums of both models' logits on the same examples, and of the labels. ``weight``: number of the
    examples that they represent, where negatives are sampled."""

    count: int = 0
    weight: float = 0.0
    not_finite: int = 0
    positives: float = 0.0
    live: Floats = field(default_factory=lambda: np.zeros(2))  # sum, sum of squares
    candidate: Floats = field(default_factory=lambda: np.zeros(2))

    def add(
        self, live_N: Floats, candidate_N: Floats, labels_N: Floats, weights_N: Floats | float = 1.0
    ) -> None:
        """Adds probabilities of the same examples. Counts and skips those that aren't finite."""
        finite = np.isfinite(candidate_N)
        self.not_finite += int((~finite).sum())
        finite &= np.isfinite(live_N)
        weights = np.broadcast_to(weights_N, finite.shape)[finite]
        for sums, values in ((self.live, live_N[finite]), (self.candidate, candidate_N[finite])):
            logits = logits_of(values)
            sums += (logits * weights).sum(), (logits**2 * weights).sum()
        self.count += int(finite.sum())
        self.weight += float(weights.sum())
        self.positives += float((labels_N[finite] * weights).sum())


def failures(
    scores: ScoreMoments, rules: PromotionConfig, figures: Mapping[str, float] = _NO_FIGURES
) -> list[str]:
    """Gates that a candidate fails, each with value and expectation. ``figures``: of the comparison of its
    retrieval with live's (training/candidates/retrieval_comparison.py), as far as known."""
    return [*_score_failures(scores, rules), *_figure_failures(figures, rules)]


def _figure_failures(figures: Mapping[str, float], rules: PromotionConfig) -> Iterator[str]:
    if figures.keys() >= {*_COSTS}:
        live_us, us, live_bytes, nbytes = (figures[name] for name in _COSTS)
        if us > rules.latency * live_us:
            yield (
                f"it takes {us:.0f} µs to rank a list, expected at most {rules.latency} times live's "
                f"{live_us:.0f}"
            )
        if nbytes > rules.memory * live_bytes:
            yield (
                f"it has {nbytes / 2**20:.1f} MiB, expected at most {rules.memory} times live's "
                f"{live_bytes / 2**20:.1f}"
            )
    live, own = figures.get("live_picks"), figures.get("picks")
    if live is not None and own is not None and own > max(rules.concentration * live, 0.2):
        yield (
            f"its ten commonest picks have {own:.0%} of {figures.get('pickers', 0):.0f} users' lists, "
            f"expected at most {rules.concentration} times live's {live:.0%}"
        )


def _score_failures(scores: ScoreMoments, rules: PromotionConfig) -> Iterator[str]:
    if scores.not_finite:
        yield f"{scores.not_finite} of its scores aren't finite"
    if scores.count < _AT_LEAST:
        return
    live, live_spread = _moments(scores.live, scores)
    mean, spread = _moments(scores.candidate, scores)
    base_rate = float(logits_of(np.array(scores.positives / scores.weight)))
    if min(abs(mean - live), abs(mean - base_rate)) > rules.score_shift:
        yield (
            f"its mean logit is {mean:.2f}, expected within {rules.score_shift} of live's {live:.2f} or of "
            f"what happens, {base_rate:.2f}"
        )
    most = max(rules.score_spread * live_spread, _USUAL)  # an untrained live model has no spread
    least = min(live_spread, _USUAL) / rules.score_spread
    if not least <= spread <= most:
        yield f"the spread of its logits is {spread:.2f}, expected {least:.2f} to {most:.2f}"


def _moments(sums: Floats, scores: ScoreMoments) -> tuple[float, float]:
    """Mean and standard deviation."""
    mean = sums[0] / scores.weight
    return float(mean), float(np.sqrt(max(sums[1] / scores.weight - mean**2, 0.0)))


def logits_of(probabilities_N: Floats) -> Floats:
    p = np.clip(probabilities_N, _SMALLEST, 1 - _SMALLEST)
    out: Floats = np.log(p) - np.log1p(-p)
    return out
