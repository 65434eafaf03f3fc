"""Which form of a merge serves, and with which weights: chosen on the stream, by scores from before learning.

All is counted in nats of log loss of the first label. That makes the learning rate 1 the right one: log loss
is 1-mixable, so weights exp(-loss so far) are those of a Bayesian who takes each form for possible, and lose
at most ln(forms) nats on the best form, however long the stream is (Vovk 1990; Freund and Schapire 1997 have
the general case, "Hedge"). Nothing here is drawn: equal losses, equal choice.

Legend: N examples, W weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]
_SMALLEST: Final = 1e-7  # probabilities are kept this far from 0 and 1
SURE: Final = 3.0  # nats: the odds are twenty to one


def average_logits(probabilities: Sequence[ArrayLike], weights: Sequence[float]) -> Doubles:
    """Probabilities of several lines as one: the mean of their logits by ``weights``, which sum to 1."""
    if len(probabilities) != len(weights) or abs(sum(weights) - 1) > 1e-9 or min(weights) < 0:
        raise ValueError(
            f"weights are {list(weights)}, expected {len(probabilities)} that sum to 1"
        )
    logits = [w * _logit(p) for p, w in zip(probabilities, weights, strict=True)]
    out: Doubles = 1 / (1 + np.exp(-np.sum(logits, axis=0)))
    return out


def losses(probabilities: ArrayLike, labels: ArrayLike) -> Doubles:
    """Log loss of each example (N,), in nats."""
    p = np.clip(np.asarray(probabilities, np.float64), _SMALLEST, 1 - _SMALLEST)
    return -np.where(np.asarray(labels) > 0, np.log(p), np.log1p(-p))


def _logit(probabilities: ArrayLike) -> Doubles:
    p = np.clip(np.asarray(probabilities, np.float64), _SMALLEST, 1 - _SMALLEST)
    out: Doubles = np.log(p) - np.log1p(-p)
    return out


@dataclass
class Averages:
    """A line and a candidate averaged, by weights that are chosen by how well they predicted.

    ``grid`` are the candidate's weights that are thought possible. At first it is as likely as not that the
    candidate is of no use, weight 0; while the stream speaks for that, the line answers alone. Else all of
    the grid answer, by their chances: so a bad candidate can cost a nat or so in all, not one in each list.
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
        """Of each weight of the grid; they sum to 1."""
        odds = np.exp(self.lost_W.min() - self.lost_W)
        out: Doubles = odds / odds.sum()
        return out

    @property
    def weight(self) -> float:
        """The candidate's, by the chances of the grid."""
        return float(self._serving_W @ np.array(self.grid))

    @property
    def _serving_W(self) -> Doubles:
        chances = self.chances_W
        return np.eye(len(self.grid))[0] if chances[0] > 0.5 else chances

    def average(self, line: ArrayLike, candidate: ArrayLike) -> Doubles:
        """Probabilities of both as one."""
        out = np.zeros(np.shape(line))
        for weight, chance in zip(self.grid, self._serving_W, strict=True):
            if chance:
                out += chance * average_logits([line, candidate], [1 - weight, weight])
        return out

    def update(self, line_N: ArrayLike, candidate_N: ArrayLike, labels_N: ArrayLike) -> None:
        """Labels have come of examples whose probabilities both told before."""
        for place, weight in enumerate(self.grid):
            told = average_logits([line_N, candidate_N], [1 - weight, weight])
            self.lost_W[place] += losses(told, labels_N).sum()


@dataclass
class Lead:
    """By how many nats a form is ahead of the one that serves, and the sum of the squares of its steps."""

    nats: float = 0.0
    squares: float = 0.0

    def add(self, better: float) -> None:
        self.nats, self.squares = self.nats + better, self.squares + better**2
        if self.nats <= 0:
            self.nats = self.squares = 0.0

    @property
    def deviations(self) -> float:
        """Its lead in standard deviations of what a lead by chance would be."""
        return self.nats / self.squares**0.5 if self.squares else 0.0


@dataclass
class Chooser:
    """Which of several forms serves: another takes over once it has been better on the current traffic.

    A form's lead is counted since it last was no better than the one that serves (Page 1954: a sum that never
    falls below 0). So what it was worth long ago says nothing. It takes over with a lead of ``sure`` nats
    that is ``clear`` standard deviations of such leads, the one with most nats where there are several.
    """

    live: str
    sure: float = SURE
    clear: float = 2.0
    leads: dict[str, Lead] = field(default_factory=dict)

    def add(self, form: str, lead: Lead | None = None) -> None:
        """A form that may take over; one that is there begins anew. ``lead``: on what it caught up with, each
        example predicted before it was learned."""
        if form != self.live:
            self.leads[form] = lead or Lead()

    def drop(self, form: str) -> None:
        """A form that is no more. Raises ValueError for the one that serves."""
        if form == self.live:
            raise ValueError(f"{form!r} serves; choose another before it is dropped")
        self.leads.pop(form, None)

    def update(self, better: Mapping[str, float]) -> str:
        """By how many nats each form was better than the one that serves on the examples of a step, whose
        labels have come; returns which serves from now on."""
        for form, lead in self.leads.items():
            lead.add(better[form])
        able = [
            form
            for form, lead in self.leads.items()
            if lead.nats > self.sure and lead.deviations > self.clear
        ]
        if able:
            best = max(able, key=lambda form: (self.leads[form].nats, form))
            self.leads[self.live], self.live = Lead(), best
            del self.leads[best]
            self.leads = {form: Lead() for form in self.leads}
        return self.live


@dataclass(frozen=True)
class LatencyGate:
    """Whether two lines may answer together: only where the second costs no more than ``allowed_ms``."""

    allowed_ms: float

    def allows(self, one_ms: float, both_ms: float) -> bool:
        return both_ms - one_ms <= self.allowed_ms
