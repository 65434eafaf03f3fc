"""Comparison of a candidate model with the live one on the same stream of examples.

Paired: each example has the probability that live gave it when it was served, and the candidate's before
learning it. So difficulty common to both cancels out. All bounds are always valid.
"""

# N examples

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
BLOCK: Final = 128  # examples of an AUC; a step may have too few of either label
_LEAST_BLOCKS: Final = 15  # before AUC has bounds
_SMALLEST: Final = 1e-6  # probabilities stay this far from 0 and 1: a loss is 13.8 at most
_MAX_SEGMENTS: Final = 16
_MAX_USERS: Final = 100_000  # that are counted


@dataclass(frozen=True)
class PairedPredictions:
    """Examples scored by both models. ``users`` int64, all (N,); ``segments``: masks (N,) by name.
    Probabilities must be finite."""

    users_N: NDArray[np.int64]
    live_N: Floats
    candidate_N: Floats
    labels_N: Floats
    segments: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    weights_N: Floats | None = None  # of losses, for sampled examples; None: 1 each

    def __post_init__(self) -> None:
        sizes = {len(self.users_N), len(self.live_N), len(self.candidate_N), len(self.labels_N)}
        if len(sizes) > 1:
            raise ValueError(f"arrays have {sorted(sizes)} examples, expected as many in each")

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def loss_weights_N(self) -> Floats:
        return np.ones(len(self)) if self.weights_N is None else self.weights_N


@dataclass(frozen=True)
class ComparisonResult:
    """Current results. Differences are the candidate's gain: above 0 it is better.

    ``loss``: live's log loss minus the candidate's, in nats an example, and in each of ``segments``; ``auc``:
    the candidate's minus live's within blocks, ``user_auc`` within users; ``recall``: difference of the share
    of engaged items among the best 300 that each would retrieve. ``calibration``: predicted / observed.
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
    """One candidate beside live. ``alpha``: probability that any bound on log loss or AUC is ever wrong; the
    bounds on segments are wrong with probability ``alpha`` in all together."""

    def __init__(self, alpha: float = 0.05, tight_at: float = 5_000, block: int = BLOCK) -> None:
        # Union bound over the two bounds of log loss and of AUC. The others have their own.
        self._alpha, self._tight_at, self._block = alpha, tight_at, block
        self._loss = ClusteredMean(alpha / 4, tight_at)
        self._recall = ClusteredMean(alpha / 4, tight_at / 10)
        self._auc = ClusteredMean(alpha / 4, tight_at, at_least=_LEAST_BLOCKS)
        self._user_auc, self._pairs = ClusteredMean(alpha / 4, tight_at), UserAuc()
        self._segments: dict[str, ClusteredMean] = {}
        self._blocks = 0
        self._waiting: list[PairedPredictions] = []
        self._totals = np.zeros(4)  # live's loss, live's and the candidate's probability, positives
        self._users: set[int] = set()

    def add(self, pairs: PairedPredictions) -> None:
        """Adds examples in the order of arrival."""
        if not len(pairs):
            return
        live_loss = log_losses(pairs.live_N, pairs.labels_N)
        gain = live_loss - log_losses(pairs.candidate_N, pairs.labels_N)
        weights = pairs.loss_weights_N
        self._loss.add(pairs.users_N, gain, weights)
        for name, mask in pairs.segments.items():
            segment = self._segment(name) if mask.any() else None
            if segment is not None:
                segment.add(pairs.users_N[mask], gain[mask], weights[mask])
        sums = np.stack([live_loss, pairs.live_N, pairs.candidate_N, pairs.labels_N])
        self._totals += sums @ weights
        if len(self._users) < _MAX_USERS:
            self._users.update(pairs.users_N.tolist())
        scores = (pairs.users_N, pairs.live_N, pairs.candidate_N, pairs.labels_N)
        self._user_auc.add(*self._pairs.add(*scores))
        self._waiting.append(pairs)
        if sum(map(len, self._waiting)) >= self._block:
            self._end_block()

    def add_hits(
        self, users_N: NDArray[np.int64], live_N: NDArray[np.bool_], candidate_N: NDArray[np.bool_]
    ) -> None:
        """Adds engaged items: the user, and whether each model would have retrieved the item."""
        self._recall.add(users_N, candidate_N.astype(np.float64) - live_N)

    @property
    def examples(self) -> int:
        return int(self._loss.weight)

    def result(self) -> ComparisonResult:
        live_loss, live, candidate, positives = self._totals.tolist()
        examples = self.examples
        return ComparisonResult(
            examples, len(self._users), self._loss.estimate(), self._auc.estimate(),
            self._user_auc.estimate(), self._recall.estimate(),
            {name: mean.estimate() for name, mean in self._segments.items()},
            live_loss / examples if examples else math.nan, live / positives if positives else math.nan,
            candidate / positives if positives else math.nan,
        )  # fmt: skip

    def _segment(self, name: str) -> ClusteredMean | None:
        if name not in self._segments and len(self._segments) < _MAX_SEGMENTS:
            alpha = self._alpha / (2 * _MAX_SEGMENTS)
            self._segments[name] = ClusteredMean(alpha, self._tight_at)
        return self._segments.get(name)

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
    """−log of the probability of the observed label, (N,), in nats."""
    p = np.clip(probabilities_N, _SMALLEST, 1 - _SMALLEST)
    out: Floats = -(labels_N * np.log(p) + (1 - labels_N) * np.log1p(-p))
    return out
