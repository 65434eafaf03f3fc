"""AUC, normalized entropy and calibration of what steps said before they learned, over newest examples.

It is made of sums alone, as deltas carry them (``metrics``: training/continual/learner.py), so whoever reads
deltas has it. A window of examples, not of time: a figure is as sure on a quiet night as at noon.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np

from recsys.model.prediction_metrics import BINS, Floats, auc_of

WINDOW: Final = 4_096  # examples: an AUC of 0.7 is then known to within 0.02, 19 times in 20
ALL, POSITIVE = "bin.", "bin1."  # of the first label: how names of its bins begin
_LEAST: Final = 200  # examples below which nothing is said


class Prequential:
    """Feed it the ``metrics`` of each step, in order."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._steps: deque[Mapping[str, float]] = deque()
        self._sums = dict[str, float]()

    @property
    def examples(self) -> float:
        """In the window: at least as many as it is long, once so many came."""
        return self._sums.get("examples", 0.0)

    def take(self, metrics: Mapping[str, float]) -> None:
        """A step was learned. One whose sums aren't finite, or that judged nothing, is passed over."""
        if not metrics.get("examples") or not all(map(math.isfinite, metrics.values())):
            return
        self._steps.append(metrics)
        self._add(metrics, 1.0)
        while self.examples - self._steps[0]["examples"] >= self._window:
            self._add(self._steps.popleft(), -1.0)

    def figures(self) -> dict[str, float]:
        """By kind and label, as ``calibration.like``; what can't be said is left out."""
        if self.examples < _LEAST:
            return {}
        found = {"judged": self.examples}
        for name in self._sums:
            kind, _, label = name.partition(".")
            if kind == "loss":
                found |= self._of_label(label)
        labels = {
            name[len(ALL) :].rpartition(".")[0] for name in self._sums if name.startswith(ALL)
        }
        found |= {f"auc.{label}": self._auc(label) for label in labels}
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _of_label(self, label: str) -> dict[str, float]:
        happened = self._sums.get(f"happened.{label}", 0.0)
        rate = happened / self.examples
        if not 0 < rate < 1 or happened < 1:
            return {}
        entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
        return {
            f"normalized_entropy.{label}": self._sums[f"loss.{label}"] / self.examples / entropy,
            f"calibration.{label}": self._sums.get(f"predicted.{label}", 0.0) / happened,
        }

    def _auc(self, label: str) -> float:
        def bins(kind: str) -> Floats:
            # What left the window leaves no less than nothing, but for the last bits.
            return np.array(
                [max(0.0, self._sums.get(f"{kind}{label}.{n}", 0.0)) for n in range(BINS)]
            )

        return auc_of(bins(ALL), bins(POSITIVE))

    def _add(self, metrics: Mapping[str, float], sign: float) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + sign * value
