"""Exact order of approximate hits: products summed in a fixed order, and equals sorted by key.

FAISS computes products by SIMD kernels whose last bit can depend on a vector's position, and returns equals
in any order. Its hits are therefore only candidates: their products are computed again here, and more are
fetched while one that was left out might belong to the best k.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
Hits = tuple[Indices, Vectors]  # indices (or keys of items) and products, best first
_SPARE: Final = 16  # hits fetched beyond k, and an eighth of k
_MOST: Final = 16  # times as many are fetched at most; then all candidates are scanned once
# Bound on the error of a product of float32 with float16 numbers, relative to its sum of absolute terms,
# twice: a product that was left out and one that was fetched may both be off. 64 dimensions. ``_TINY``: the
# same of subnormal numbers.
_ERROR: Final = 2.0**-10 + 2.0**-16
_TINY: Final = 2.0**-24
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


def largest_parts(vectors_NV: Vectors, before_V: Vectors) -> Vectors:
    """Largest absolute finite value of each dimension, of these vectors and of ``before``."""
    sizes = np.abs(vectors_NV)
    largest: Vectors = np.where(np.isfinite(sizes), sizes, 0).max(0, initial=0)
    return np.maximum(before_V, largest)


def exact_best(
    fetch: Callable[[int], Indices], every: Callable[[], Indices], rows_NV: Vectors, query_V: Vectors, k: int,
    most: int, largest_V: Vectors,
) -> Hits:  # fmt: skip
    """The k best hits as (indices, products): by product, of equals by index.

    ``fetch(n)`` returns up to n candidates, the best by approximate product; ``every()`` returns all of them,
    at most ``most``; ``largest_V``: as of ``largest_parts`` over all vectors. Hits without a finite product
    are dropped. Linear in the number of candidates, however many are equal.
    """
    bound = float(np.abs(query_V) @ (_ERROR * largest_V + _TINY))
    size = first = min(most, k + k // 8 + _SPARE)
    while size <= _MOST * first:
        candidates = np.sort(fetch(size))
        complete = len(candidates) < size or size >= most
        indices, products_M = _finite_products(candidates, rows_NV, query_V)
        best, least = largest(products_M, k), products_M.min(initial=np.inf)
        if complete or (len(best) == k and products_M[best[-1]] - least > bound):
            return indices[best], products_M[best]
        size = min(most, 2 * size)
    return best_of(every(), rows_NV, query_V, k)


def best_of(
    candidates: Indices, rows_NV: Vectors, query_V: Vectors, k: int, keys_N: Indices | None = None
) -> Hits:
    """The k best of all candidates, in ascending order, as ``exact_best`` orders them; of equals by key with
    ``keys_N``."""
    indices, products_M = _finite_products(candidates, rows_NV, query_V)
    best = largest(products_M, k, None if keys_N is None else keys_N[indices])
    return indices[best], products_M[best]


def _finite_products(candidates: Indices, rows_NV: Vectors, query_V: Vectors) -> Hits:
    products_M = products(rows_NV, candidates, query_V)
    finite = np.isfinite(products_M)
    return candidates[finite], products_M[finite]
