"""Two models compared on the same examples, as they come: what a candidate is judged by.

Pairwise: each example has the probability that live gave it when it was served, and the one that the
candidate gave before it learned it. So whatever both find hard cancels out. All bounds hold at all times.
"""

# N examples, B examples of a block

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from experiments.statistics.user_auc import UserAuc
from recsys.model.prediction_metrics import auc

Floats = NDArray[np.float64]
BLOCK: Final = 128  # examples whose AUCs are compared: a step may have too few of either label
_BLOCKS: Final = 15  # without which nothing is said of AUC
_SMALLEST: Final = 1e-6  # probabilities are kept this far from 0 and 1: a loss is 13.8 at most
_MOST_SEGMENTS: Final = 16


@dataclass(frozen=True)
class PairedPredictions:
    """Examples that both models have scored. ``users`` int64, all (N,); ``segments``: masks (N,) by name.

    Probabilities must be finite: those of a candidate that gives others never come so far (see
    ``experiments.promotion.gates``).
    """

    users_N: NDArray[np.int64]
    live_N: Floats
    candidate_N: Floats
    labels_N: Floats
    segments: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    weights_N: Floats | None = None  # of losses, where some stand for others; None: 1 each

    def __post_init__(self) -> None:
        sizes = {len(self.users_N), len(self.live_N), len(self.candidate_N), len(self.labels_N)}
        if len(sizes) > 1:
            raise ValueError(f"arrays have {sorted(sizes)} examples, expected as many in each")

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class ComparisonResult:
    """What is known so far. Differences are the candidate's gain: above 0 it is better.

    ``loss``: live's log loss minus the candidate's, in nats an example; ``auc``: the candidate's minus
    live's, within blocks; ``user_auc``: the same within users; ``recall``: that of engaged items among the
    best 300 which each would retrieve.
    ``segments``: the loss gained in each. ``calibration``: predicted over happened.
    """

    examples: int = 0
    users: int = 0
    loss: AnytimeEstimate = AnytimeEstimate()
    auc: AnytimeEstimate = AnytimeEstimate()
    user_auc: AnytimeEstimate = AnytimeEstimate()
    recall: AnytimeEstimate = AnytimeEstimate()
    segments: Mapping[str, AnytimeEstimate] = field(default_factory=dict)
    live_loss: float = math.nan
    live_calibration: float = math.nan
    candidate_calibration: float = math.nan


class Comparison:
    """One candidate beside live. ``alpha``: the probability that any of the bounds on log loss and AUC is
    ever wrong; each segment has bounds of its own, wrong with probability ``alpha`` in all together."""

    def __init__(self, alpha: float = 0.05, tight_at: float = 5_000, block: int = BLOCK) -> None:
        # Of log loss and AUC, each with two bounds: a union bound over all four. The others have their own.
        self._alpha, self._tight_at = alpha, tight_at
        self._loss, self._recall = ClusteredMean(alpha / 4, tight_at), ClusteredMean(alpha / 4, tight_at / 10)
        self._auc, self._block = ClusteredMean(alpha / 4, tight_at, at_least=_BLOCKS), block
        self._user_auc, self._orders = ClusteredMean(alpha / 4, tight_at), UserAuc()
        self._segments: dict[str, ClusteredMean] = {}
        self._blocks = 0
        self._waiting: list[PairedPredictions] = []
        self._totals = np.zeros(4)  # live's loss, live's and the candidate's probability, positives
        self._users: set[int] = set()

    def add(self, pairs: PairedPredictions) -> None:
        """Examples in the order in which they came."""
        if not len(pairs):
            return
        live, candidate = (
            log_losses(pairs.live_N, pairs.labels_N),
            log_losses(pairs.candidate_N, pairs.labels_N),
        )
        gained = live - candidate
        weights = np.ones(len(pairs)) if pairs.weights_N is None else pairs.weights_N
        self._loss.add(pairs.users_N, gained, weights)
        for name, mask in pairs.segments.items():
            if mask.any() and self._segment(name) is not None:
                self._segments[name].add(pairs.users_N[mask], gained[mask], weights[mask])
        sums = np.stack([live, pairs.live_N, pairs.candidate_N, pairs.labels_N])
        self._totals += sums @ weights
        if len(self._users) < 100_000:
            self._users.update(pairs.users_N.tolist())
        self._user_auc.add(
            *self._orders.add(pairs.users_N, pairs.live_N, pairs.candidate_N, pairs.labels_N)
        )
        self._waiting.append(pairs)
        if sum(map(len, self._waiting)) >= self._block:
            self._end_block()

    def add_hits(
        self, users_N: NDArray[np.int64], live_N: NDArray[np.bool_], candidate_N: NDArray[np.bool_]
    ) -> None:
        """Engaged items: whose, and whether each model would have retrieved them."""
        self._recall.add(users_N, candidate_N.astype(np.float64) - live_N)

    @property
    def examples(self) -> int:
        return int(self._loss.weight)

    def result(self) -> ComparisonResult:
        live_loss, live, candidate, positives = self._totals.tolist()
        examples = int(self._loss.weight)
        return ComparisonResult(
            examples,
            len(self._users),
            self._loss.estimate(),
            self._auc.estimate(),
            self._user_auc.estimate(),
            self._recall.estimate(),
            {name: mean.estimate() for name, mean in self._segments.items()},
            live_loss / examples if examples else math.nan,
            live / positives if positives else math.nan,
            candidate / positives if positives else math.nan,
        )

    def _segment(self, name: str) -> ClusteredMean | None:
        if name not in self._segments:
            if len(self._segments) >= _MOST_SEGMENTS:
                return None
            self._segments[name] = ClusteredMean(self._alpha / (2 * _MOST_SEGMENTS), self._tight_at)
        return self._segments[name]

    def _end_block(self) -> None:
        labels = np.concatenate([p.labels_N for p in self._waiting])
        live = auc(np.concatenate([p.live_N for p in self._waiting]), labels)
        candidate = auc(np.concatenate([p.candidate_N for p in self._waiting]), labels)
        self._waiting.clear()
        self._blocks += 1
        if math.isfinite(candidate - live):
            block = np.array([self._blocks], np.int64)
            self._auc.add(block, np.array([candidate - live]), np.array([float(len(labels))]))


def log_losses(probabilities_N: Floats, labels_N: Floats) -> Floats:
    """−log of the probability given to what happened, (N,), in nats."""
    p = np.clip(probabilities_N, _SMALLEST, 1 - _SMALLEST)
    out: Floats = -(labels_N * np.log(p) + (1 - labels_N) * np.log1p(-p))
    return out
