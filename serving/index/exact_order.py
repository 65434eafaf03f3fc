"""Exact order of approximate hits: products summed in a fixed order, and equals sorted by key.

FAISS computes products by SIMD kernels whose last bit can depend on a vector's position, and returns equals
in any order. Its hits are therefore only candidates: their products are computed again here, and more are
fetched while one that was left out might belong to the best k.
"""

import math
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


@kernel(types.void(read_only(types.float32, 1), types.int64[::1]))
def rank_values(values: Any, sort_keys: Any) -> None:
    """Writes a sort key for each value: ascending keys order the values from largest to smallest, equal ones
    by position, which is the low 32 bits."""
    bits = values.view(np.int32)
    for i in range(values.shape[0]):
        own = bits[i] if values[i] != 0 else np.int32(0)  # -0 is 0
        ascending = own ^ (own >> 31 & np.int32(0x7FFFFFFF))
        sort_keys[i] = np.int64(~ascending) << 32 | i


@kernel(types.int64(_VECTORS, read_only(types.int64, 1), _VECTOR, _VECTOR, types.float32[::1],
                    types.int64[::1], types.float32[::1]))  # fmt: skip
def rank_hits(
    rows: Any, hits: Any, query: Any, errors: Any, products: Any, sort_keys: Any, least_and_bound: Any
) -> Any:
    """Ranks the finite products of a query with the rows of hits (H,; -1: none), as ``rank_values``, by index
    instead of position; returns their number. ``products`` and ``sort_keys``: room of the same length, which
    isn't checked. ``least_and_bound`` gets the least product, and a bound on the difference of two products'
    errors."""
    least, bound, count = np.float32(np.inf), np.float32(0), 0
    for v in range(query.shape[0]):
        bound += abs(query[v]) * errors[v]
    products_at(rows, np.maximum(hits, 0), query, products)
    rank_values(products, sort_keys)
    for i in range(hits.shape[0]):
        if hits[i] >= 0 and math.isfinite(products[i]):
            least = min(least, products[i])
            sort_keys[count] = (sort_keys[i] >> 32) << 32 | hits[i]
            count += 1
    least_and_bound[0], least_and_bound[1] = least, bound
    return count


@kernel(types.void(types.int64[::1], types.float32[::1]))
def products_of(sort_keys: Any, products: Any) -> None:
    """Writes the products that ``rank_hits`` ranked, -0 as 0."""
    bits = products.view(np.int32)
    for i in range(sort_keys.shape[0]):
        ascending = ~np.int32(sort_keys[i] >> 32)
        bits[i] = ascending ^ (ascending >> 31 & np.int32(0x7FFFFFFF))


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
    """``largest`` in one sort of integers."""
    sort_keys = np.empty(len(values_N), np.int64)
    rank_values(np.ascontiguousarray(values_N), sort_keys)
    return _smallest(sort_keys, k) & 0xFFFFFFFF


def _smallest(sort_keys: Indices, k: int) -> Indices:
    """The k smallest, ascending; changes the array."""
    if len(sort_keys) > k:
        sort_keys.partition(k - 1)
        sort_keys = sort_keys[:k]
    sort_keys.sort()
    return sort_keys


def largest_parts(vectors_NV: Vectors, before_V: Vectors) -> Vectors:
    """Largest absolute finite value of each dimension, of these vectors and of ``before``."""
    sizes = np.abs(vectors_NV)
    largest: Vectors = np.where(np.isfinite(sizes), sizes, 0).max(0, initial=0)
    return np.maximum(before_V, largest)


def errors_of(largest_V: Vectors) -> Vectors:
    """Bound on the errors of two products for each unit of a query, by ``largest_parts``."""
    return (_ERROR * largest_V + _TINY).astype(np.float32)


def exact_best(
    fetch: Callable[[int], Indices], every: Callable[[], Indices], rows_NV: Vectors, query_V: Vectors, k: int,
    most: int, errors_V: Vectors, hits: Indices | None = None,
) -> Hits:  # fmt: skip
    """The k best hits as (indices, products): by product, of equals by index.

    ``fetch(n)`` returns n candidates, the best by approximate product, -1 after the last; ``hits``: those of
    ``first_size``, if they are there already. ``every()`` returns all of them, at most ``most``;
    ``errors_V``: as of ``errors_of`` over all vectors. Hits without a finite product are dropped. Linear in
    the number of candidates, however many are equal.
    """
    size = first = first_size(k, most)
    products_K, least_and_bound = np.empty(k, np.float32), np.empty(2, np.float32)
    while size <= _MOST * first:
        candidates = fetch(size) if hits is None else hits
        assert len(candidates) == size, f"got {len(candidates)} hits, expected {size}"
        sort_keys, room = np.empty(size, np.int64), np.empty(size, np.float32)
        count = rank_hits(rows_NV, candidates, query_V, errors_V, room, sort_keys, least_and_bound)
        best = _smallest(sort_keys[:count], k)
        products_of(best, products_K)
        sure = len(best) == k and products_K[-1] - least_and_bound[0] > least_and_bound[1]
        if sure or candidates[-1] < 0 or size >= most:
            return best & 0xFFFFFFFF, products_K[: len(best)]
        size, hits = min(most, 2 * size), None
    return best_of(every(), rows_NV, query_V, k)


def first_size(k: int, most: int) -> int:
    """Number of candidates that ``exact_best`` looks at first."""
    return min(most, k + k // 8 + _SPARE)


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
