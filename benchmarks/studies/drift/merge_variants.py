"""Chooses which variant of a merge serves, and with which weights, by scores from before learning.

All scores are nats of log loss of the first label. Log loss is 1-mixable, so the learning rate 1 is right:
weights exp(-loss so far) are the posterior over variants and lose at most ln(variants) nats to the best one,
however long the stream is (Vovk 1990; Freund and Schapire 1997 have the general case, "Hedge"). Nothing here
is drawn: equal losses, equal choice.

Legend: N examples, W weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]
_SMALLEST: Final = 1e-7  # distance of probabilities from 0 and 1
SURE: Final = 3.0  # nats: odds of twenty to one


def average_logits(probabilities: Sequence[ArrayLike], weights: Sequence[float]) -> Doubles:
    """Averages the logits of several lines by ``weights``, which sum to 1; returns probabilities."""
    if len(probabilities) != len(weights) or abs(sum(weights) - 1) > 1e-9 or min(weights) < 0:
        raise ValueError(
            f"weights are {list(weights)}, expected {len(probabilities)} that sum to 1"
        )
    clipped = [_clipped(p) for p in probabilities]
    logits = [w * (np.log(p) - np.log1p(-p)) for p, w in zip(clipped, weights, strict=True)]
    out: Doubles = 1 / (1 + np.exp(-np.sum(logits, axis=0)))
    return out


def losses(probabilities: ArrayLike, labels: ArrayLike) -> Doubles:
    """Log loss of each example (N,), in nats."""
    p = _clipped(probabilities)
    return -np.where(np.asarray(labels) > 0, np.log(p), np.log1p(-p))


def _clipped(probabilities: ArrayLike) -> Doubles:
    return np.clip(np.asarray(probabilities, np.float64), _SMALLEST, 1 - _SMALLEST)


@dataclass
class LogitAverage:
    """Averages a line and a candidate, by weights chosen by past predictions.

    ``grid``: the candidate's possible weights. The prior probability of weight 0 (a useless candidate) is
    one half; while it stays above that, the line answers alone. Else all of the grid answer, by their
    posterior, so a bad candidate can cost a nat or so in all, not one in each list.
    """

    grid: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    lost_W: Doubles = field(init=False)

    def __post_init__(self) -> None:
        if self.grid[0] != 0 or len(self.grid) < 2:
            raise ValueError(
                f"grid is {self.grid}, expected 0 (the line alone) and then other weights"
            )
        self.lost_W = np.full(len(self.grid), np.log(len(self.grid) - 1))
        self.lost_W[0] = 0.0

    @property
    def chances_W(self) -> Doubles:
        """Posterior of each weight of the grid; sums to 1."""
        odds = np.exp(self.lost_W.min() - self.lost_W)
        out: Doubles = odds / odds.sum()
        return out

    @property
    def weight(self) -> float:
        """The candidate's mean weight."""
        return float(self._serving_W @ np.array(self.grid))

    @property
    def _serving_W(self) -> Doubles:
        chances = self.chances_W
        return np.eye(len(self.grid))[0] if chances[0] > 0.5 else chances

    def average(self, line: ArrayLike, candidate: ArrayLike) -> Doubles:
        """Merged probabilities."""
        out = np.zeros(np.shape(line))
        for weight, chance in zip(self.grid, self._serving_W, strict=True):
            if chance:
                out += chance * average_logits([line, candidate], [1 - weight, weight])
        return out

    def update(self, line_N: ArrayLike, candidate_N: ArrayLike, labels_N: ArrayLike) -> None:
        """Takes labels of examples, with both probabilities from before learning."""
        for place, weight in enumerate(self.grid):
            probabilities = average_logits([line_N, candidate_N], [1 - weight, weight])
            self.lost_W[place] += losses(probabilities, labels_N).sum()


@dataclass
class Lead:
    """Lead in nats of a variant over the one that serves, and the sum of the squares of its steps."""

    nats: float = 0.0
    squares: float = 0.0

    def add(self, better: float) -> None:
        self.nats, self.squares = self.nats + better, self.squares + better**2
        if self.nats <= 0:
            self.nats = self.squares = 0.0

    @property
    def deviations(self) -> float:
        """The lead in standard deviations of a lead by chance."""
        return self.nats / self.squares**0.5 if self.squares else 0.0


@dataclass
class VariantChooser:
    """Switches to another variant once it has been better on the current traffic.

    A lead counts since the variant last was no better than the one that serves (Page 1954: a sum that never
    falls below 0), so the distant past doesn't matter. A variant takes over with a lead of ``sure`` nats that
    is ``clear`` standard deviations; of several, the one with most nats.
    """

    live: str
    sure: float = SURE
    clear: float = 2.0
    leads: dict[str, Lead] = field(default_factory=dict)

    def add(self, variant: str, lead: Lead | None = None) -> None:
        """Adds a variant, or restarts it. ``lead``: from its catch-up, each example predicted before it was
        learned."""
        if variant != self.live:
            self.leads[variant] = lead or Lead()

    def drop(self, variant: str) -> None:
        """Removes a variant. Raises ValueError for the one that serves."""
        if variant == self.live:
            raise ValueError(f"{variant!r} serves; choose another before it is dropped")
        self.leads.pop(variant, None)

    def update(self, better: Mapping[str, float]) -> str:
        """Takes by how many nats each variant was better than the one that serves on a step's examples;
        returns the variant that serves from now on."""
        for variant, lead in self.leads.items():
            lead.add(better[variant])
        able = [
            variant
            for variant, lead in self.leads.items()
            if lead.nats > self.sure and lead.deviations > self.clear
        ]
        if able:
            best = max(able, key=lambda variant: (self.leads[variant].nats, variant))
            self.leads[self.live], self.live = Lead(), best
            del self.leads[best]
            self.leads = {variant: Lead() for variant in self.leads}
        return self.live


@dataclass(frozen=True)
class LatencyGate:
    """Allows two lines to answer together only if the second costs no more than ``allowed_ms``."""

    allowed_ms: float

    def allows(self, one_ms: float, both_ms: float) -> bool:
        return both_ms - one_ms <= self.allowed_ms
