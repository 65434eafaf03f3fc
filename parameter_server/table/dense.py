"""Dense parameters as one flat vector, with Adam (Kingma, Ba 2015).

    m ← β₁ m + (1 - β₁) g     v ← β₂ v + (1 - β₂) g²     w ← w - rate · m̂ / (√v̂ + ε)

with m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ), all float32.

A new line learns faster at first and then at a constant rate (inverse time decay, Robbins, Monro 1951, with a
floor, since it never stops learning):

    rate(t) = rate · max(1, first / (1 + t / 50))

Workers learn with w. Replicas serve its exponential average (Polyak, Juditsky 1992; exponential because a
moving optimum has no beginning to average from):

    a ← d a + (1 - d) w    d = min(average^min(1, r²), (1 + t) / (10 + t))

A small d at first keeps a new line from being held back by its initial values. A step at r < 1 times the
rate counts as r² of one in the average: small live steps have the root of their share in a large one.

Where a gradient goes on after the last parameter, the last ones are a choice model's: they are descended by
Newton's method (parameter_server/table/newton.py), and served as they are.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table import kernels
from parameter_server.table.kernels import BETA_1, BETA_2
from parameter_server.table.newton import newton_step, weights_of
from parameter_server.table.routing import as_rows

Vector = NDArray[np.float32]

SETTLING: Final = 50  # steps after which the first rate is halved
DENSE_COLUMNS: Final = ("values", "averaged", "m", "v", "t", "curvature")  # names in an export
SENT: Final = "held/dense"  # in a shard's export: what replicas hold, while it isn't the newest


def fits(gradient: Vector, bound: float) -> bool:
    """Whether every component of a gradient (P,) is finite and within ±bound."""
    return bool(np.all(np.abs(gradient) <= bound))  # False for NaN


class Dense:
    """Flat parameter vector (P,), its optimizer state, and the ``averaged`` vector (P,) to serve."""

    def __init__(
        self, values: Vector, rate: float, bound: float = 1e3, average: float = 0.0, first: float = 1.0
    ) -> None:
        """``average``: weight of the old average at each step; 0 serves the newest values. ``first``: factor
        on the rate with which a new line begins."""
        self.values = np.array(values, np.float32).reshape(-1)
        self.averaged = self.values
        self._rate, self._bound, self._average, self._first = rate, bound, average, first
        self._m = np.zeros_like(self.values)
        self._v = np.zeros_like(self.values)
        self._t = 0
        self._curvature = np.zeros(0, np.float32)  # upper triangle, once W is known

    def fits_model(self, gradient: Vector) -> bool:
        """Whether a gradient is of as many parameters."""
        weights = weights_of(gradient.size - self.values.size)
        return gradient.ndim == 1 and 0 <= weights <= self.values.size

    def apply(self, gradient: Vector, rate: float = 1.0) -> bool:
        """Applies a summed gradient (P,), or one with the sums of a choice model. ``rate``: factor on the
        learning rate. Returns False and changes nothing if the gradient doesn't ``fit``. Replaces ``values``
        and ``averaged`` by new arrays, so earlier readers keep theirs; m and v change in place."""
        if not self.fits_model(gradient):
            raise ValueError(
                f"dense gradient has shape {gradient.shape}, expected {self.values.shape}: "
                "worker and shard have different models"
            )
        if not fits(gradient, self._bound):
            return False
        size = self.values.size
        gradient, sums = gradient[:size], gradient[size:]
        first = size - weights_of(len(sums))  # of the choice model
        chosen = gradient[first:]
        if len(sums):
            gradient = np.concatenate([gradient[:first], np.zeros_like(chosen)])
        self._t += 1
        settled = max(1.0, self._first / (1 + self._t / SETTLING))
        step_size = np.float32(rate * self._rate * settled / (1 - BETA_1**self._t))
        unbiased = np.float32(1 / (1 - BETA_2**self._t))
        average = self._average ** min(1.0, rate * rate)
        keep = np.float32(min(average, (1 + self._t) / (10 + self._t)))
        before = self.values, self.averaged
        self.values, self.averaged = np.empty_like(self.values), np.empty_like(self.values)
        new = self._m, self._v, self.values, self.averaged
        kernels.adam(*before, as_rows(gradient), step_size, unbiased, keep, *new)
        if len(sums):
            curvature = self._curvature if len(self._curvature) else np.zeros_like(sums[:-1])
            weights, self._curvature = newton_step(before[0][first:], chosen, sums, curvature)
            self.values[first:] = self.averaged[first:] = weights
        return True

    def export(self) -> dict[str, NDArray[Any]]:
        """Copies of all state, for a snapshot."""
        vectors = (self.values, self.averaged, self._m, self._v)
        out = {name: v.copy() for name, v in zip(DENSE_COLUMNS, vectors, strict=False)}
        return out | {"t": np.array([self._t], np.int64), "curvature": self._curvature.copy()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restores an export. Raises ValueError if its number of parameters differs."""
        if arrays["values"].shape != self.values.shape:
            raise ValueError(
                f"snapshot has {arrays['values'].size} dense parameters, the model "
                f"{self.values.size}: start a new line for another model"
            )
        self.values, self.averaged, self._m, self._v = (
            np.array(arrays[name], np.float32) for name in DENSE_COLUMNS[:4]
        )
        self._t = int(arrays["t"][0])
        self._curvature = np.array(arrays["curvature"], np.float32)

    def digest(self) -> str:
        """SHA-256 of parameters and optimizer state."""
        sha = hashlib.sha256()
        for array in self.export().values():
            sha.update(array.tobytes())
        return sha.hexdigest()
