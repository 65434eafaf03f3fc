"""What the next block of examples is expected to be, and how far from it a block is, in standard deviations.

Several numbers (columns) of the same blocks are forecast side by side: a level that is slowly forgotten, and
a daily cycle, by discounted least squares on

    y = a + b sin h + c cos h + d sin 2h + e cos 2h        (h: time of day as an angle)

with a ridge on the cycle, so that a day longer than the memory is followed by the level. What is left is
whitened, as neighbouring blocks are alike (viewers stay for more than a block; counters move slowly):

    e_t = r_t − ρ r_{t−1},   z_t = e_t / sd(e) · sqrt(examples / usual examples)

z has mean 0 and variance 1 while nothing changes. ρ and sd are learned with their outliers cut off, so a
change doesn't hide itself. It doesn't know what a change is; training/drift/change_detectors.py does.
"""

# C columns, D terms of the forecast

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_DAY_MS: Final = 86_400_000
_RIDGE: Final = np.diag([1e-3, 8.0, 8.0, 16.0, 16.0])  # blocks that say: there is no cycle
_CUT: Final = 3.0  # sd beyond which a block teaches nothing about ρ and sd
_MOST_ALIKE: Final = 0.95
_CLIP: Final = 5.0  # of z: no block alone is a change
_BEHIND: Final = (
    12  # blocks that aren't learned from yet: a change is told before it counts as usual
)
_LATELY: Final = 8  # blocks whose mean says how far a number strays by itself
_WANDERS: Final = 0.4  # ρ from which on a number wanders
_YOUNG: Final = 40  # blocks: with so many, what is usual is known half as well as it will be
_NOISE: Final = 1e-9  # sd below which a column counts as constant, relative to its level


class _Block(NamedTuple):
    """One block as it will be learned from: terms (D,), and by column the value less the first one, residual,
    the one before it, what is white of it."""

    terms: Floats
    value_C: Floats
    residual_C: Floats
    before_C: Floats
    white_C: Floats
    lately_C: Floats  # mean of the newest residuals
    wild_C: Floats  # what of the value is so far off that it isn't learned


class Baseline:
    """Forecast and scale of C columns. ``memory``: blocks after which what was is forgotten to 1/e."""

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
        self._zero = np.zeros(columns)  # the first block: everything is relative to it
        self._before = np.zeros(columns)  # the last residual, r_{t−1}
        self._square = np.zeros(columns)  # running sums over blocks, of r² …
        self._product = np.zeros(columns)  # … of r_t r_{t−1} …
        self._white = np.zeros(columns)  # … and of e²
        self._wander = np.zeros(columns)  # … and of (mean of the newest r)²
        self._weight = 0.0
        self.lately = np.zeros(columns)
        self._examples = 0.0
        self._waiting: list[_Block] = []

    @property
    def ready(self) -> bool:
        """Whether enough blocks were seen to say what is usual."""
        return self.blocks > self.warm_up

    def expected(self, at_ms: int) -> Floats:
        """The forecast (C,) for a block at a time."""
        out: Floats = self._zero + _terms(at_ms) @ self._coefficients()
        return out

    def scale(self) -> Floats:
        """The standard deviation (C,) of a usual block around its forecast."""
        return self._sd(self._square)

    def strayed(self) -> Floats:
        """How far (C,) the newest blocks together lie from the forecast, beside how far such have usually
        lain, of numbers that wander by themselves; infinite for others."""
        out: Floats = np.abs(self.lately) / self._sd(self._wander)
        return np.where(self._alike() > _WANDERS, out, np.inf)

    def take(self, values_C: Floats, at_ms: int, examples: float) -> Floats:
        """z (C,) of the next block, of so many examples; zeros until it is ready."""
        if not self.blocks:
            self._zero, self._examples = values_C.copy(), examples
        terms = _terms(at_ms)
        inverse = np.linalg.inv(self._design + _RIDGE)
        residual = values_C - self._zero - terms @ inverse @ self._moments
        # A forecast of little data is itself uncertain, and a block of few examples too.
        spread = np.sqrt(1.0 + terms @ inverse @ terms)
        residual_C = residual / spread * np.sqrt(examples / max(self._examples, 1.0))
        white_C = residual_C - self._alike() * self._before
        newest = [block.residual_C for block in self._waiting[1 - _LATELY :]]
        self.lately = np.mean([*newest, residual_C], 0)
        value_C, most = values_C - self._zero, _CLIP * self._sd(self._square)
        wild = residual - np.clip(residual, -most, most) if self.ready else np.zeros(self.columns)
        block = _Block(terms, value_C, residual_C, self._before, white_C, self.lately, wild)
        known = np.sqrt(self._weight / (self._weight + _YOUNG))
        z_C: Floats = np.clip(known * white_C / self._sd(self._white), -_CLIP, _CLIP)
        self._before = residual_C
        self._examples += (examples - self._examples) / min(self.blocks + 1, 100)
        self._waiting.append(block)
        if len(self._waiting) > _BEHIND or self.blocks < self.warm_up // 2:
            self._learn(self._waiting.pop(0))
        self.blocks += 1
        return z_C if self.ready else np.zeros(self.columns)

    def restart(self, column: int, blocks: int) -> float:
        """Takes the level of the newest blocks for the usual one; returns by how much that is another."""
        newest = self._waiting[-max(1, blocks) :]
        moved = float(np.mean([block.value_C[column] for block in newest]))
        moved -= float(
            np.mean([block.terms for block in newest], 0) @ self._coefficients()[:, column]
        )
        # As if all that was seen had been so much higher.
        self._moments[:, column] += moved * self._design[:, 0]
        self._before[column] = 0.0
        for block in self._waiting[: len(self._waiting) - len(newest)]:
            block.value_C[column] += moved
        for block in newest:
            block.residual_C[column] = block.before_C[column] = block.white_C[column] = 0.0
            block.wild_C[column] = 0.0
        return moved

    def _coefficients(self) -> Floats:
        out: Floats = np.linalg.solve(self._design + _RIDGE, self._moments).astype(np.float64)
        return out

    def _alike(self) -> Floats:
        """ρ (C,): how much of a residual stays in the next one."""
        out: Floats = self._product / np.maximum(self._square, 1e-300)
        return np.clip(out, 0.0, _MOST_ALIKE)

    def _sd(self, squares_C: Floats) -> Floats:
        tiny = _NOISE * (1.0 + np.abs(self._zero))
        out: Floats = np.maximum(np.sqrt(squares_C / max(self._weight, 1e-12)), tiny)
        return out

    def _learn(self, block: _Block) -> None:
        keep = self._keep
        self._design = keep * self._design + np.outer(block.terms, block.terms)
        self._moments = keep * self._moments + np.outer(block.terms, block.value_C - block.wild_C)
        if self._design[0, 0] < 5:  # its forecast was a guess yet
            return
        cut = _CUT * self._sd(self._square) if self._weight > 15 else np.inf
        white_cut = _CUT * self._sd(self._white) if self._weight > 15 else np.inf
        residual, before = np.clip(block.residual_C, -cut, cut), np.clip(block.before_C, -cut, cut)
        self._square = keep * self._square + residual**2
        self._product = keep * self._product + residual * before
        self._white = keep * self._white + np.clip(block.white_C, -white_cut, white_cut) ** 2
        self._wander = keep * self._wander + block.lately_C**2
        self._weight = keep * self._weight + 1.0


def _terms(at_ms: int) -> Floats:
    turn = 2.0 * np.pi * (at_ms % _DAY_MS) / _DAY_MS
    return np.array([1.0, np.sin(turn), np.cos(turn), np.sin(2 * turn), np.cos(2 * turn)])
