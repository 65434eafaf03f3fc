"""Online ensemble of models' probabilities, weighted by their recent log loss.

Exponential weights by log loss, with a small share redistributed to all models after each example, so that a
model that becomes right soon counts again (fixed share: Herbster and Warmuth 1998, "Tracking the best
expert"). The mean loss stays close to that of the best sequence of models with few changes. Callers delay
``learn`` until the label is known.
"""

# N examples, E models

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SMALLEST: Final = 1e-6  # probabilities stay this far from 0 and 1
SHARE: Final = 0.005  # a change in 200 examples: unproven beyond the simulated worlds


class FixedShare:
    """Weights of models, which are added one by one and stay. The first one begins with all of the weight."""

    def __init__(self, share: float = SHARE) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share is {share}, expected more than 0 and less than 1")
        self._share = share
        self._weights_E = np.ones(1)

    @property
    def weights_E(self) -> Floats:
        """Weight of each model, with sum 1."""
        return self._weights_E.copy()

    def add(self) -> None:
        """Adds a model, with its part of the share."""
        models = len(self._weights_E) + 1
        part = self._share / models
        self._weights_E = np.append(self._weights_E * (1 - part), part)

    def mix(self, probabilities_NE: Floats) -> Floats:
        """Weighted mean (N,) of the models' probabilities."""
        mixed: Floats = self._checked(probabilities_NE) @ self._weights_E
        return mixed

    def learn(self, probabilities_NE: Floats, labels_N: Floats) -> None:
        """Updates the weights by earlier predictions and their labels, example by example."""
        clipped_NE = np.clip(self._checked(probabilities_NE), _SMALLEST, 1 - _SMALLEST)
        for row_E, label in zip(clipped_NE, labels_N, strict=True):
            weights_E = self._weights_E * (row_E if label else 1 - row_E)
            total = float(weights_E.sum())
            if not math.isfinite(total):
                raise ValueError("a model's probability isn't finite; leave that model out")
            models = len(weights_E)
            self._weights_E = (1 - self._share) * weights_E / total + self._share / models

    def _checked(self, probabilities_NE: Floats) -> Floats:
        models = len(self._weights_E)
        if probabilities_NE.ndim != 2 or probabilities_NE.shape[1] != models:
            raise ValueError(
                f"probabilities are {probabilities_NE.shape}, expected (N, {models}): a column for each model"
            )
        return probabilities_NE
