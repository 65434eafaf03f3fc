"""Running mean and variance of the model's dense inputs, which lie at the head of the vector of its dense
parameters: so they are in the digest, the snapshots and the replay of a line.

A vector with statistics of F inputs begins with ``HEADER`` + F, then their means, their variances less 1, and
the numbers of examples that they are of, in ``UNIT``. At 0 they change no input. A worker sends, in the place
of a gradient, sums over a lane's examples in ``UNIT``, of the differences d to the mean as it was: -Σ d, Σ d²
and the number of examples. Shards add those of all lanes, and ``fold`` merges them (Chan, Golub and LeVeque
1983, "Algorithms for computing the sample variance").
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
HEADER: Final = 32_768.0
UNIT: Final = 2.0**-17  # so that the sums of 100,000 examples fit the bound on gradients
FARTHEST: Final = 30.0  # difference to a mean that counts
_MEMORY: Final = 100_000  # examples: those before fade


def statistics_size(inputs: int) -> int:
    """Numbers that stand for so many inputs."""
    return 1 + 3 * inputs


def inputs_of(values: Vector) -> int:
    """F of a vector of dense parameters (P,); 0 for one without statistics."""
    first = float(values[0]) if len(values) else 0.0
    inputs = int(first - HEADER) if HEADER <= first < 2 * HEADER else 0
    is_whole = first == HEADER + inputs and statistics_size(inputs) <= len(values)
    return inputs if is_whole else 0


def fold(values: Vector, sums: Vector, inputs: int) -> None:
    """Merges sums into the statistics at the head of a vector, in place. Both may be longer."""
    own, size = slice(1, statistics_size(inputs)), 1 / UNIT
    mean_F, less_1_F, count_F = values[own].reshape(3, inputs).astype(np.float64)
    minus_F, squares_F, new_F = sums[own].reshape(3, inputs).astype(np.float64) * size
    before_F = np.minimum(count_F * size, _MEMORY)
    total_F = np.maximum(before_F + new_F, 1.0)
    shift_F = -minus_F / np.maximum(new_F, 1.0)
    spread_F = (less_1_F + 1) * before_F + squares_F - new_F * shift_F**2
    variance_F = (spread_F + before_F * new_F / total_F * shift_F**2) / total_F
    merged = mean_F + new_F / total_F * shift_F, variance_F - 1, total_F * UNIT
    before = mean_F, less_1_F, count_F
    values[own] = np.concatenate(
        [np.where(new_F > 0, *pair) for pair in zip(merged, before, strict=True)]
    )
