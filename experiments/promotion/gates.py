"""Sanity gates: what a candidate must pass before anybody asks whether it is better. Pure.

A model that is broken in a plain way (not finite, scores that are nowhere near live's, everybody given the
same few items) is refused by its first examples, not by a test that needs thousands. Each gate returns the
reason why not, or nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys.config.promotion_config import PromotionConfig

_SMALLEST = 1e-6
_USUAL = 2.0  # a spread of logits that nobody need wonder at
_AT_LEAST = 200  # scores, before their spread says anything


@dataclass
class ScoreMoments:
    """Running sums over the logits of what both models scored, and what came of it."""

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
        """Probabilities of the same examples. Those that aren't finite are counted and left out."""
        fine = np.isfinite(candidate_N)
        self.not_finite += int((~fine).sum())
        fine &= np.isfinite(live_N)
        for sums, values in ((self.live, live_N[fine]), (self.candidate, candidate_N[fine])):
            logits = logits_of(values)
            sums += logits.sum(), (logits**2).sum()
        self.count += int(fine.sum())
        self.positives += float(labels_N[fine].sum())

    @property
    def happened(self) -> float:
        """The logit of how often the label came."""
        rate = np.array([self.positives / max(1, self.count)])
        return float(logits_of(rate)[0])


@dataclass(frozen=True)
class ModelCost:
    """What a model costs: microseconds to rank a list, bytes of rows and dense parameters."""

    rank_us: float
    nbytes: float


@dataclass(frozen=True)
class PickConcentration:
    """What each of two models would pick for the same users: the share of its ten commonest items."""

    live: float
    candidate: float
    users: int


def failures(
    scores: ScoreMoments,
    rules: PromotionConfig,
    sizes: tuple[ModelCost, ModelCost] | None = None,
    picks: PickConcentration | None = None,
) -> list[str]:
    """The gates that a candidate doesn't pass, each with its value and what was expected.

    ``sizes``: live's and the candidate's.
    """
    found = [*_of_scores(scores, rules)]
    if sizes is not None:
        live, candidate = sizes
        if candidate.rank_us > rules.latency * live.rank_us:
            found.append(
                f"it takes {candidate.rank_us:.0f} µs to rank a list, expected at most {rules.latency} times "
                f"live's {live.rank_us:.0f}"
            )
        if candidate.nbytes > rules.memory * live.nbytes:
            found.append(
                f"it has {candidate.nbytes / 2**20:.1f} MiB, expected at most {rules.memory} times live's "
                f"{live.nbytes / 2**20:.1f}"
            )
    if picks is not None and picks.candidate > max(rules.concentration * picks.live, 0.2):
        found.append(
            f"its ten commonest picks have {picks.candidate:.0%} of {picks.users} users' lists, expected at "
            f"most {rules.concentration} times live's {picks.live:.0%}"
        )
    return found


def _of_scores(scores: ScoreMoments, rules: PromotionConfig) -> Iterator[str]:
    if scores.not_finite:
        yield f"{scores.not_finite} of its scores aren't finite"
    if scores.count < _AT_LEAST:
        return
    (live, live_spread), (its, spread) = (
        _moments(scores.live, scores),
        _moments(scores.candidate, scores),
    )
    if min(abs(its - live), abs(its - scores.happened)) > rules.score_shift:
        yield (
            f"its mean logit is {its:.2f}, expected within {rules.score_shift} of live's {live:.2f} or of "
            f"what happens, {scores.happened:.2f}"
        )
    most = max(rules.score_spread * live_spread, _USUAL)  # live may know nothing yet
    least = min(live_spread, _USUAL) / rules.score_spread
    if not least <= spread <= most:
        yield f"the spread of its logits is {spread:.2f}, expected {least:.2f} to {most:.2f}"


def _moments(sums: NDArray[np.float64], scores: ScoreMoments) -> tuple[float, float]:
    mean = sums[0] / scores.count
    return float(mean), float(np.sqrt(max(sums[1] / scores.count - mean**2, 0.0)))


def logits_of(probabilities_N: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(probabilities_N, _SMALLEST, 1 - _SMALLEST)
    out: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return out
