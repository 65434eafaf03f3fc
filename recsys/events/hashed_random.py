"""Hash-based random draws as one compiled loop, for the request path."""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import GAMMA, kernel, mix, read_only, unit


def draws(seed: int, keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """One draw in [0, 1) per key: the first column of ``recsys.events.hashing.uniforms``."""
    out = np.empty(len(keys))
    _draw(np.uint64(seed), np.ascontiguousarray(keys), out)
    return out


@kernel(types.void(types.uint64, read_only(types.int64, 1), types.float64[::1]))
def _draw(seed: Any, keys: Any, out: Any) -> None:
    mixed = mix(seed)
    for i in range(keys.shape[0]):
        cell = mix(np.uint64(keys[i]) ^ mixed) + GAMMA
        out[i] = unit(cell)
