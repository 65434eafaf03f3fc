"""AUC, normalized entropy and calibration of prequential predictions over the newest examples, from the sums
in deltas (``Learner._metrics``). The window counts examples, not time."""

import math
from collections import deque
from collections.abc import Mapping
from typing import Final

import numpy as np

from recsys.model.prediction_metrics import BINS, Floats, auc_of

WINDOW: Final = 4_096  # examples: an AUC of 0.7 is then known to within 0.02, 19 times in 20
ALL, POSITIVE = "bin.", "bin1."  # prefixes of the names of the first label's bins
_LEAST: Final = 200  # examples below which there are no figures


class Prequential:
    """Feed it the ``metrics`` of each step, in order."""

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._steps: deque[Mapping[str, float]] = deque()
        self._sums = dict[str, float]()

    @property
    def examples(self) -> float:
        """Number of examples in the window: at least its length, once so many came."""
        return self._sums.get("examples", 0.0)

    def take(self, metrics: Mapping[str, float]) -> None:
        """Adds a learned step. Skips one without examples or with sums that aren't finite."""
        if not metrics.get("examples") or not all(map(math.isfinite, metrics.values())):
            return
        self._steps.append(metrics)
        self._add(metrics, 1.0)
        while self.examples - self._steps[0]["examples"] >= self._window:
            self._add(self._steps.popleft(), -1.0)

    def figures(self) -> dict[str, float]:
        """Figures by kind and label, such as ``calibration.like``; undefined ones are omitted."""
        if self.examples < _LEAST:
            return {}
        figures = {"judged": self.examples}
        for name in self._sums:
            kind, _, label = name.partition(".")
            if kind == "loss":
                figures |= self._of_label(label)
        labels = {n.removeprefix(ALL).rpartition(".")[0] for n in self._sums if n.startswith(ALL)}
        figures |= {f"auc.{label}": self._auc(label) for label in labels}
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    def _of_label(self, label: str) -> dict[str, float]:
        happened = self._sums.get(f"happened.{label}", 0.0)
        rate = happened / self.examples
        if not 0 < rate < 1 or happened < 1:
            return {}
        entropy = -rate * math.log(rate) - (1 - rate) * math.log1p(-rate)
        return {
            f"rate.{label}": rate,
            f"normalized_entropy.{label}": self._sums[f"loss.{label}"] / self.examples / entropy,
            f"calibration.{label}": self._sums.get(f"predicted.{label}", 0.0) / happened,
        }

    def _auc(self, label: str) -> float:
        def bins(kind: str) -> Floats:
            # Rounding may leave tiny negative sums of steps that left the window.
            sums = [self._sums.get(f"{kind}{label}.{n}", 0.0) for n in range(BINS)]
            return np.array([max(0.0, value) for value in sums])

        return auc_of(bins(ALL), bins(POSITIVE))

    def _add(self, metrics: Mapping[str, float], sign: float) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + sign * value
