"""Exact order of hits: products summed in a fixed order, and equals sorted by position or key."""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
Hits = tuple[Indices, Vectors]  # indices (or keys of items) and products, best first
_VECTORS, _VECTOR = read_only(types.float32, 2), read_only(types.float32, 1)


@kernel(types.void(_VECTORS, read_only(types.int64, 1), _VECTOR, types.float32[::1]))
def products_at(rows: Any, indices: Any, query: Any, out: Any) -> None:
    """Product of a query with each of some rows, summed from the first dimension to the last."""
    for i in range(indices.shape[0]):
        total = np.float32(0)
        for v in range(query.shape[0]):
            total += query[v] * rows[indices[i], v]
        out[i] = total


def products(rows_NV: Vectors, indices: Indices, query_V: Vectors) -> Vectors:
    """Products (M,) of a query with the rows at ``indices`` (M,). ``rows_NV``: contiguous."""
    out = np.empty(len(indices), np.float32)
    products_at(rows_NV, indices, query_V, out)
    return out


def largest(values_N: Vectors, k: int, keys_N: Indices | None = None) -> Indices:
    """Positions of the k largest values, in order, of equals by key (by position without ``keys_N``)."""
    if keys_N is None:
        return _largest_by_position(values_N, k)
    positions = np.arange(len(values_N))
    if len(values_N) > k:
        kth = np.partition(values_N, len(values_N) - k)[len(values_N) - k]
        above, equal = np.flatnonzero(values_N > kth), np.flatnonzero(values_N == kth)
        missing = k - len(above)
        if len(equal) > missing:
            equal = equal[np.argpartition(keys_N[equal], missing - 1)[:missing]]
        positions = np.concatenate([above, equal])
    order: Indices = positions[np.lexsort((keys_N[positions], -values_N[positions]))]
    return order


def _largest_by_position(values_N: Vectors, k: int) -> Indices:
    """``largest`` in one sort of integers: the order of the values above, the position below."""
    bits = (values_N + np.float32(0)).view(np.int32)  # -0 becomes 0
    ascending = bits ^ (bits >> 31 & 0x7FFFFFFF)
    places = (~ascending).astype(np.int64) << 32 | np.arange(len(values_N))
    if len(places) > k:
        places = np.partition(places, k - 1)[:k]
    return np.sort(places) & 0xFFFFFFFF


def best_of(
    candidates: Indices, rows_NV: Vectors, query_V: Vectors, k: int, keys_N: Indices | None = None
) -> Hits:
    """The k best of all candidates, in ascending order, as (indices, products): by product, of equals by
    index, or by key with ``keys_N``. Those without a finite product are dropped."""
    products_M = products(rows_NV, candidates, query_V)
    finite = np.isfinite(products_M)
    indices, products_M = candidates[finite], products_M[finite]
    best = largest(products_M, k, None if keys_N is None else keys_N[indices])
    return indices[best], products_M[best]
