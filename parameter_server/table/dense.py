"""The dense parameters as one flat vector, with Adam (Kingma, Ba 2015).

    m ← β₁ m + (1 - β₁) g     v ← β₂ v + (1 - β₂) g²     w ← w - rate · m̂ / (√v̂ + ε)

with m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ), all float32. What the numbers mean is the model's business.

A new line learns faster at first, and then at the usual rate for ever, since it never stops learning (inverse
time decay, Robbins, Monro 1951, with a floor)

    rate(t) = rate · max(1, first / (1 + t / 50))

so that the first few dozen steps of a system that starts from nothing already say something.

Workers learn with w; replicas are given its running average (Polyak, Juditsky 1992; exponential, as the
noise around a moving optimum has no beginning to average from)

    a ← d a + (1 - d) w    d = min(average, (1 + t) / (10 + t))

whose d is small at first, so that a new line isn't held back by where it started.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

BETA_1: Final = 0.9
BETA_2: Final = 0.999
EPSILON: Final = 1e-8
SETTLING: Final = 50  # steps after which the first rate is halved
DENSE_COLUMNS: Final = ("values", "averaged", "m", "v", "t")  # of an export


def fits(gradient: Vector, bound: float) -> bool:
    """Whether a gradient (P,) may be learned from: all of it is finite and within the bound."""
    return bool(np.all(np.abs(gradient) <= bound))  # False for NaN


class Dense:
    """One flat parameter vector (P,), its optimizer state, and the ``averaged`` vector (P,) to serve."""

    def __init__(
        self,
        values: Vector,
        rate: float,
        bound: float = 1e3,
        average: float = 0.0,
        first: float = 1.0,
    ) -> None:
        """``average``: what is kept of the running average at each step; 0 serves the newest values.
        ``first``: how many times the rate a new line begins with."""
        self.values = np.array(values, np.float32).reshape(-1)
        self.averaged = self.values
        self._rate = rate
        self._bound = bound
        self._average = average
        self._first = first
        self._m = np.zeros_like(self.values)
        self._v = np.zeros_like(self.values)
        self._t = 0

    def apply(self, gradient: Vector, rate: float = 1.0) -> bool:
        """Learns from a summed gradient (P,). False, and nothing changes, where a component isn't finite or
        exceeds the bound: one bad number would stay in m and v for ever. ``rate``: times the usual one.

        Replaces ``values`` and ``averaged`` by new arrays, so what was handed out before stays as it was.
        """
        if gradient.shape != self.values.shape:
            raise ValueError(
                f"dense gradient has shape {gradient.shape}, expected {self.values.shape}: "
                "worker and shard have different models"
            )
        if not fits(gradient, self._bound):
            return False
        self._t += 1
        one = np.float32(1)
        beta_1, beta_2 = np.float32(BETA_1), np.float32(BETA_2)
        self._m = beta_1 * self._m + (one - beta_1) * gradient
        self._v = beta_2 * self._v + (one - beta_2) * (gradient * gradient)
        settled = max(1.0, self._first / (1 + self._t / SETTLING))
        own = np.float32(rate * self._rate * settled / (1 - BETA_1**self._t))
        root = np.sqrt(self._v * np.float32(1 / (1 - BETA_2**self._t)))
        self.values = self.values - own * self._m / (root + np.float32(EPSILON))
        keep = np.float32(min(self._average, (1 + self._t) / (10 + self._t)))
        self.averaged = keep * self.averaged + (one - keep) * self.values
        return True

    def export(self) -> dict[str, NDArray[Any]]:
        """Copies of everything, for a snapshot."""
        return {
            "values": self.values.copy(),
            "averaged": self.averaged.copy(),
            "m": self._m.copy(),
            "v": self._v.copy(),
            "t": np.array([self._t], np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Becomes what was exported. Raises ValueError where it has another number of parameters."""
        if arrays["values"].shape != self.values.shape:
            raise ValueError(
                f"snapshot has {arrays['values'].size} dense parameters, the model "
                f"{self.values.size}: start a new line for another model"
            )
        self.values = np.array(arrays["values"], np.float32)
        self.averaged = np.array(arrays["averaged"], np.float32)
        self._m = np.array(arrays["m"], np.float32)
        self._v = np.array(arrays["v"], np.float32)
        self._t = int(arrays["t"][0])

    def digest(self) -> str:
        """SHA-256 of parameters and optimizer state."""
        sha = hashlib.sha256()
        for array in self.export().values():
            sha.update(array.tobytes())
        return sha.hexdigest()
