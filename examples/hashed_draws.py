"""Random arrays for simulated worlds, each a hash of the seed and ids: no generator has a state."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.events.hashing import Id, key_of, uniforms

Floats = NDArray[np.float64]


def draws(seed: int, size: int, *ids: Id) -> Floats:
    """``size`` draws in [0, 1) that belong to some ids."""
    key = key_of("draw", "\x1f".join(map(str, ids)))
    return np.asarray(uniforms(seed, np.array([key], np.int64), size)[0])


@lru_cache(maxsize=1 << 16)
def normals(seed: int, size: int, *ids: Id) -> Floats:
    """Standard normal draws that belong to some ids (Box and Muller 1958). Read-only."""
    one, two = draws(seed, 2 * size, *ids).reshape(2, size)
    values: Floats = np.sqrt(-2 * np.log(1 - one)) * np.cos(2 * math.pi * two)
    values.flags.writeable = False
    return values


def turning(seed: int, size: int, time_ms: int, period_ms: int, *ids: Id) -> Floats:
    """Smooth paths of variance 1 through one normal draw each period."""
    at = time_ms / period_ms + float(draws(seed, 1, "phase", *ids)[0])
    before = math.floor(at)
    angle = (at - before) * math.pi / 2
    now, then = normals(seed, size, *ids, before), normals(seed, size, *ids, before + 1)
    return math.cos(angle) * now + math.sin(angle) * then


def chosen(weights: NDArray[Any], draw: float) -> int:
    """The index that a draw in [0, 1) falls on, with probabilities in proportion to ``weights``."""
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, draw * sums[-1], "right")), len(sums) - 1)
