"""Loops compiled by numba: the decorator that all of them go through, and how a key is mixed.

Every kernel has an explicit signature, so it is compiled (or read from numba's cache) at import and never
in the middle of a step. No fast maths: each loop is IEEE arithmetic in the order written, whatever the
machine's vector width.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit, types

F = TypeVar("F", bound=Callable[..., Any])

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_2_POW_53 = float(1 << 53)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def kernel(signature: Any) -> Callable[[F], F]:
    """Compiles a function; kept in numba's cache where there is a folder that it may write to."""

    def compiled(function: F) -> F:
        try:
            return njit(signature, cache=True, nogil=True)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # a read-only install without a home: compile in every process
            return njit(signature, nogil=True)(function)  # type: ignore[no-any-return]

    return compiled


def read_only(kind: Any, dimensions: int) -> Any:
    """The type of an input: it takes both read-only and writable arrays."""
    return types.Array(kind, dimensions, "C", readonly=True)


@kernel(types.uint64(types.uint64))
def mix(value: Any) -> Any:
    """SplitMix64's finaliser: the same function as ``recsys.events.hashing.splitmix64``."""
    z = value + GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@kernel(types.float64(types.uint64))
def unit(cell: Any) -> Any:
    """The draw in [0, 1) of a cell: as in ``recsys.events.hashing.uniforms``."""
    return np.float64(mix(cell) >> np.uint64(11)) / _2_POW_53
