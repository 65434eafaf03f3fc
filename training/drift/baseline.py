"""Forecasts the next block of examples, and standardises each block's deviation from the forecast.

Several numbers (columns) are forecast side by side: a slowly forgotten level and a daily cycle, by discounted
least squares on

    y = a + b sin h + c cos h + d sin 2h + e cos 2h        (h: time of day as an angle)

with a ridge on the cycle. The residuals are whitened, since neighbouring blocks are correlated:

    e_t = r_t − ρ r_{t−1},   z_t = e_t / sd(e) · sqrt(examples / usual examples)

z has mean 0 and variance 1 while nothing changes. ρ and sd are estimated with outliers clipped, so a change
doesn't hide itself.
"""

# C columns, D terms of the forecast

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_DAY_MS: Final = 86_400_000
_RIDGE: Final = np.diag([1e-3, 8.0, 8.0, 16.0, 16.0])  # blocks of evidence against a cycle
_CUT: Final = 3.0  # sd at which a block is clipped for the estimates of ρ and sd
_MAX_RHO: Final = 0.95
_CLIP: Final = 5.0  # bound of z: no single block is a change
_DELAY: Final = 12  # blocks before one is learned: a change is detected before it counts as usual
_RECENT: Final = 8  # blocks whose mean tells how far a number wanders by itself
_WANDERS: Final = 0.4  # ρ from which on a number wanders
_YOUNG: Final = 40  # blocks at which the estimates are half as precise as they will be
_NOISE: Final = 1e-9  # sd below which a column counts as constant, relative to its level


class _Block(NamedTuple):
    """A block to be learned from: terms (D,), and the rest by column."""

    terms: Floats
    value_C: Floats  # less the first block's value
    residual_C: Floats
    before_C: Floats  # the residual before it
    white_C: Floats  # the whitened residual
    recent_C: Floats  # mean of the newest residuals
    outlier_C: Floats  # part of the value too far off to be learned


class Baseline:
    """Forecast and scale of C columns. ``memory``: blocks after which the past is discounted to 1/e."""

    def __init__(self, columns: int, memory: int = 400, warm_up: int = 60) -> None:
        if warm_up < 10 or memory < 2 * warm_up:
            raise ValueError(
                f"memory is {memory} and warm_up {warm_up} blocks, expected warm_up from 10 on and memory at "
                "least twice that: raise memory"
            )
        self.columns, self.warm_up = columns, warm_up
        self.blocks = 0
        self._keep = 1.0 - 1.0 / memory
        self._design = np.zeros((5, 5))
        self._moments = np.zeros((5, columns))
        self._zero = np.zeros(columns)  # the first block: all values are relative to it
        self._before = np.zeros(columns)  # the last residual, r_{t−1}
        self._square = np.zeros(columns)  # running sums over blocks, of r² …
        self._product = np.zeros(columns)  # … of r_t r_{t−1} …
        self._white = np.zeros(columns)  # … of e² …
        self._wander = np.zeros(columns)  # … and of (mean of the newest r)²
        self._weight = 0.0
        self._recent = np.zeros(columns)
        self._examples = 0.0
        self._waiting: list[_Block] = []

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over."""
        return self.blocks > self.warm_up

    def expected(self, at_ms: int) -> Floats:
        """The forecast (C,) for a block at a time."""
        out: Floats = self._zero + _terms(at_ms) @ self._coefficients()
        return out

    def scale(self) -> Floats:
        """The standard deviation (C,) of a usual block around its forecast."""
        return self._sd(self._square)

    def strayed(self) -> Floats:
        """The newest blocks' distance (C,) from the forecast, relative to its usual size, for numbers that
        wander by themselves; infinite for others."""
        out: Floats = np.abs(self._recent) / self._sd(self._wander)
        return np.where(self._rho() > _WANDERS, out, np.inf)

    def take(self, values_C: Floats, at_ms: int, examples: float) -> Floats:
        """Returns z (C,) of the next block, of this many examples; zeros during warm-up."""
        if not self.blocks:
            self._zero, self._examples = values_C.copy(), examples
        terms = _terms(at_ms)
        inverse = np.linalg.inv(self._design + _RIDGE)
        residual = values_C - self._zero - terms @ inverse @ self._moments
        # Little data make the forecast uncertain, and few examples the block.
        spread = np.sqrt(1.0 + terms @ inverse @ terms)
        residual_C = residual / spread * np.sqrt(examples / max(self._examples, 1.0))
        white_C = residual_C - self._rho() * self._before
        newest = [block.residual_C for block in self._waiting[1 - _RECENT :]]
        self._recent = np.mean([*newest, residual_C], 0)
        value_C, bound = values_C - self._zero, _CLIP * self._sd(self._square)
        outlier = residual - np.clip(residual, -bound, bound)
        outlier = outlier if self.ready else np.zeros(self.columns)
        block = _Block(terms, value_C, residual_C, self._before, white_C, self._recent, outlier)
        precision = np.sqrt(self._weight / (self._weight + _YOUNG))
        z_C: Floats = np.clip(precision * white_C / self._sd(self._white), -_CLIP, _CLIP)
        self._before = residual_C
        self._examples += (examples - self._examples) / min(self.blocks + 1, 100)
        self._waiting.append(block)
        if len(self._waiting) > _DELAY or self.blocks < self.warm_up // 2:
            self._learn(self._waiting.pop(0))
        self.blocks += 1
        return z_C if self.ready else np.zeros(self.columns)

    def restart(self, column: int, blocks: int) -> None:
        """Makes the level of the newest blocks the usual one."""
        newest = self._waiting[-max(1, blocks) :]
        moved = float(np.mean([block.value_C[column] for block in newest]))
        terms = np.mean([block.terms for block in newest], 0)
        moved -= float(terms @ self._coefficients()[:, column])
        # As if all past values had been higher by this much.
        self._moments[:, column] += moved * self._design[:, 0]
        self._before[column] = 0.0
        for block in self._waiting[: len(self._waiting) - len(newest)]:
            block.value_C[column] += moved
        for block in newest:
            block.residual_C[column] = block.before_C[column] = block.white_C[column] = 0.0
            block.outlier_C[column] = 0.0

    def _coefficients(self) -> Floats:
        out: Floats = np.linalg.solve(self._design + _RIDGE, self._moments).astype(np.float64)
        return out

    def _rho(self) -> Floats:
        """ρ (C,): autocorrelation of the residuals."""
        out: Floats = self._product / np.maximum(self._square, 1e-300)
        return np.clip(out, 0.0, _MAX_RHO)

    def _sd(self, squares_C: Floats) -> Floats:
        tiny = _NOISE * (1.0 + np.abs(self._zero))
        out: Floats = np.maximum(np.sqrt(squares_C / max(self._weight, 1e-12)), tiny)
        return out

    def _learn(self, block: _Block) -> None:
        keep = self._keep
        self._design = keep * self._design + np.outer(block.terms, block.terms)
        value_C = block.value_C - block.outlier_C
        self._moments = keep * self._moments + np.outer(block.terms, value_C)
        if self._design[0, 0] < 5:  # its forecast was still a guess
            return
        cut = _CUT * self._sd(self._square) if self._weight > 15 else np.inf
        white_cut = _CUT * self._sd(self._white) if self._weight > 15 else np.inf
        residual, before = np.clip(block.residual_C, -cut, cut), np.clip(block.before_C, -cut, cut)
        self._square = keep * self._square + residual**2
        self._product = keep * self._product + residual * before
        self._white = keep * self._white + np.clip(block.white_C, -white_cut, white_cut) ** 2
        self._wander = keep * self._wander + block.recent_C**2
        self._weight = keep * self._weight + 1.0


def _terms(at_ms: int) -> Floats:
    angle = 2.0 * np.pi * (at_ms % _DAY_MS) / _DAY_MS
    return np.array([1.0, np.sin(angle), np.cos(angle), np.sin(2 * angle), np.cos(2 * angle)])
