"""Newton's method for the few dense parameters whose workers send second derivatives: the choice model.

    H ← f H + ΣH    w ← w - (H + λI)⁻¹ Σg

with the sums over a step of the gradients and second derivatives at w, and f = 2^(-choices / MEMORY). So each
choice counts once, by what it says about w (online Newton step, Hazan, Agarwal and Kale 2007, "Logarithmic
regret algorithms for online convex optimization"; here with derivatives instead of products of gradients).
Float64, in the order written: the same bits on every machine. What is kept of H is float32.
"""

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only
from recsys.model.choice_model import UNIT

_MEMORY: Final = 20_000  # choices after which one counts half
_RIDGE: Final = 1.0  # λ: as if that had been seen already in each direction
_LONGEST: Final = 2.0  # most that a weight moves in a step
_double = types.float64


def sums_size(weights: int) -> int:
    """Numbers that follow a vector of gradients which ends in those of so many weights: the upper triangle of
    their second derivatives and the number of choices."""
    return weights * (weights + 1) // 2 + 1 if weights else 0


def weights_of(extra: int) -> int:
    """Inverse of ``sums_size``; -1 for a number that is none."""
    weights = int((np.sqrt(max(8 * extra - 7, 0)) - 1) / 2) if extra else 0
    return weights if sums_size(weights) == extra else -1


def newton_step(
    weights_W: NDArray[np.float32],
    gradient_W: NDArray[np.float32],
    sums: NDArray[np.float32],
    curvature: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """New weights and second derivatives (upper triangle), from the sums of a step, in ``UNIT``. Without
    choices, or where a number isn't finite, as before."""
    size, all_sums = len(weights_W), sums.astype(np.float64) / UNIT
    choices = all_sums[-1]
    if not choices:
        return weights_W, curvature
    faded = curvature * 2.0 ** (-choices / _MEMORY) + all_sums[:-1]
    matrix, step = np.zeros((size, size)), np.empty(size)
    matrix.T[np.triu_indices(size)] = faded
    matrix[np.diag_indices(size)] += _RIDGE
    _solve(matrix, gradient_W.astype(np.float64) / UNIT, step)
    longest = np.abs(step).max(initial=0.0)
    if not np.isfinite(longest):
        return weights_W, curvature
    step *= min(1.0, _LONGEST / max(longest, _LONGEST))
    return (weights_W - step).astype(np.float32), faded.astype(np.float32)


@kernel(types.void(read_only(_double, 2), read_only(_double, 1), _double[::1]))
def _solve(matrix: Any, right: Any, out: Any) -> None:
    """Solves matrix x = right by Cholesky's factors. Of the matrix, which is symmetric and positive definite,
    the lower triangle is read."""
    size = matrix.shape[0]
    factor = np.zeros((size, size))
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= factor[i, k] * factor[j, k]
            if i == j:
                factor[i, i] = np.sqrt(max(total, 1e-12))
            else:
                factor[i, j] = total / factor[j, j]
    for i in range(size):
        total = right[i]
        for k in range(i):
            total -= factor[i, k] * out[k]
        out[i] = total / factor[i, i]
    for i in range(size - 1, -1, -1):
        total = out[i]
        for k in range(i + 1, size):
            total -= factor[k, i] * out[k]
        out[i] = total / factor[i, i]
