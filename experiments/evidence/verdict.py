"""Verdicts on lines beside live, as values with their evidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.statistics.comparison import ComparisonResult
from experiments.statistics.significance import AnytimeEstimate, ClusteredMean
from recsys.config.policy_config import UNWANTED
from recsys.config.promotion_config import PromotionConfig

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
_RECENT: Final = 2  # times ``least_examples``
_MAX_KINDS: Final = 8  # labels compared: each takes its share of alpha
_MAX_USERS: Final = 4_096  # counted in either group
CANARY, ALL = "canary", "all"  # stages to which a line is promoted
LEAST_USERS: Final = 10  # of a group, before there are bounds and its lists without a ranker count


@dataclass(frozen=True)
class CanaryEngagement:
    """Engagement with the canary's lists and with live's in the same time. ``gained``: difference of the
    share of shown items with each kind of engagement. ``users`` are counted up to a few thousand.
    ``unwanted``: kinds of which fewer are better."""

    examples: int = 0
    live_examples: int = 0
    gained: dict[str, AnytimeEstimate] = field(default_factory=dict)
    degraded: float = 0.0  # share of the candidate's items shown without its ranker
    live_degraded: float = 0.0
    users: int = 0
    live_users: int = 0
    unwanted: Sequence[str] = UNWANTED

    def worse(self, margin: float, than: str = "") -> str:
        """First kind of engagement that is known to be worse by more than a margin; empty if none."""
        for kind, estimate in self.gained.items():
            unwanted = kind in self.unwanted
            if estimate.low > margin if unwanted else estimate.high < -margin:
                word = "more" if unwanted else "fewer"
                return f"viewers give {word} {kind}{than}: gained {estimate.text} an item"
        return ""


class EngagementRates:
    """Engagement rates of items shown by the canary and by live. The groups have different users, so the
    bounds of a difference combine those of both means."""

    def __init__(
        self, kinds: Sequence[str], alpha: float, tight_at: float, unwanted: Sequence[str] = UNWANTED
    ) -> None:
        self.kinds, self._unwanted = tuple(kinds[:_MAX_KINDS]), unwanted
        each = alpha / (4 * max(1, len(self.kinds)))
        self._means = {
            group: {kind: ClusteredMean(each, tight_at, at_least=LEAST_USERS) for kind in self.kinds}
            for group in (True, False)
        }
        self._examples = {True: 0, False: 0}
        self._shown, self._unranked = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
        self._users: dict[bool, set[int]] = {True: set(), False: set()}

    def add(
        self, users_N: Ints, canary_N: Mask, labels_NK: Floats, ranked_N: Mask, weights_N: Floats
    ) -> None:
        """Adds items: user, whether of the canary, labels, whether ranked, and how many each represents."""
        for group in (True, False):
            chosen = canary_N == group
            users, labels, weights = users_N[chosen], labels_NK[chosen], weights_N[chosen]
            self._examples[group] += len(users)
            self._shown[group] += float(weights.sum())
            self._unranked[group] += float(weights_N[chosen & ~ranked_N].sum())
            if len(self._users[group]) < _MAX_USERS:
                self._users[group].update(users.tolist())
            for k, kind in enumerate(self.kinds):
                self._means[group][kind].add(users, labels[:, k], weights)

    def result(self) -> CanaryEngagement:
        gained = {}
        for kind in self.kinds:
            a, b = (self._means[group][kind].estimate() for group in (True, False))
            bounds = (a.mean - b.mean, a.low - b.high, a.high - b.low)
            gained[kind] = AnytimeEstimate(*bounds, min(a.weight, b.weight))
        degraded = {g: self._unranked[g] / max(1.0, shown) for g, shown in self._shown.items()}
        return CanaryEngagement(
            self._examples[True], self._examples[False], gained, degraded[True], degraded[False],
            len(self._users[True]), len(self._users[False]), self._unwanted,
        )  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """Basis of a decision. ``failed``: failed sanity gates, with value and expectation. ``compared``: since
    the proposal; ``recent``: since the stage began, or a few thousand examples ago. ``retrieves``: retrieval
    must have been compared."""

    compared: ComparisonResult = ComparisonResult()
    failed: tuple[str, ...] = ()
    served: CanaryEngagement | None = None
    recent: ComparisonResult = ComparisonResult()
    retrieves: bool = False

    def numbers(self) -> dict[str, float]:
        """The evidence as stored in a decision; unknown values are left out."""
        compared, served = self.compared, self.served
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
        values |= self._own_numbers()
        for name, estimate in estimates.items():
            bounds = {"gained": estimate.mean, "at least": estimate.low, "at most": estimate.high}
            values |= {f"{name} {bound}": value for bound, value in bounds.items()}
        return {name: float(value) for name, value in values.items() if math.isfinite(value)}

    def _own_numbers(self) -> dict[str, float]:
        """Numbers that evidence of other kinds of lines names otherwise."""
        return {} if self.served is None else {"live degraded": self.served.live_degraded}


@dataclass(frozen=True)
class Promote:
    """Promotion to the next stage."""

    to: str  # canary, or all
    why: str
    evidence: Evidence


@dataclass(frozen=True)
class Hold:
    """No change; ``final``: the candidate is given up."""

    final: bool
    why: str
    evidence: Evidence


@dataclass(frozen=True)
class Rollback:
    """The line stops answering at once; of a guard: live goes back."""

    why: str
    evidence: Evidence


@dataclass(frozen=True)
class GoLive:
    """The line becomes live as soon as the first snapshot of its epoch is written."""

    why: str
    evidence: Evidence


@dataclass(frozen=True)
class TakeBack:
    """The live line goes back to what it replaced."""

    why: str
    evidence: Evidence


Verdict = Promote | Hold | Rollback | GoLive | TakeBack


def window(rules: PromotionConfig) -> int:
    """Most examples of the recent comparison, after which it begins anew."""
    return _RECENT * rules.least_examples


def log_distance(calibration: float) -> float:
    """|log| of predicted / observed; infinite without observations."""
    if calibration > 0 and math.isfinite(calibration):
        return abs(math.log(calibration))
    return math.inf
