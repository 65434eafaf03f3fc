"""Several models' probabilities as one: each weighs as much as it has been right lately.

Exponential weights by log loss, of which a small share goes to all alike after each example, so that a model
that was wrong for long counts again soon after it is right (fixed share: Herbster and Warmuth 1998, "Tracking
the best expert"). The mean loss is never far above that of the best sequence of few changes between models.

Knows nothing of what the models are, nor when a label is known: whoever calls ``learn`` waits for that.
"""

# N examples, E models

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SMALLEST: Final = 1e-6  # probabilities are kept this far from 0 and 1
SHARE: Final = 0.005  # a change in 200 examples: unproven beyond the simulated worlds


class FixedShare:
    """Models come one by one (``add``) and stay. The first one begins with all of the weight."""

    def __init__(self, share: float = SHARE) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share is {share}, expected more than 0 and less than 1")
        self._share = share
        self._weights_E = np.ones(1)

    @property
    def weights_E(self) -> Floats:
        """What each model counts, together 1."""
        return self._weights_E.copy()

    def add(self) -> None:
        """One more model: it begins with its part of the share."""
        models = len(self._weights_E) + 1
        part = self._share / models
        self._weights_E = np.append(self._weights_E * (1 - part), part)

    def mix(self, probabilities_NE: Floats) -> Floats:
        """The weighted mean (N,) of what the models say."""
        mixed: Floats = self._checked(probabilities_NE) @ self._weights_E
        return mixed

    def learn(self, probabilities_NE: Floats, labels_N: Floats) -> None:
        """What they had said, and what happened, one example after the other."""
        said = np.clip(self._checked(probabilities_NE), _SMALLEST, 1 - _SMALLEST)
        for said_E, label in zip(said, labels_N, strict=True):
            weights_E = self._weights_E * (said_E if label else 1 - said_E)
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
