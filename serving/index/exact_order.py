"""Exact order of hits: products summed in a fixed order, and equals sorted by position or key.

The best of many are collected in a heap, whose root is the worst of them: two arrays (K,), products and hits.
"""

from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
Hits = tuple[Indices, Vectors]  # indices (or keys of items) and products, best first
_NONE: Final = 2**62  # a hit that is missing
_int, _float = types.int64, types.float32
_VECTORS, _VECTOR = read_only(_float, 2), read_only(_float, 1)


@kernel(types.void(_float[::1], _int[::1]))
def empty_heap(products: Any, hits: Any) -> None:
    """Leaves no hit in a heap."""
    products[:] = -np.inf
    hits[:] = _NONE


@kernel(types.void(_float[::1], _int[::1], _int, _float, _int))
def _replace_root(products: Any, hits: Any, count: Any, product: Any, hit: Any) -> None:
    """Replaces the worst of the first ``count``: the smallest product, of equals the largest hit."""
    at, child = 0, 1
    while child < count:
        other = child + 1
        if other < count and (products[other] < products[child] or (
            products[other] == products[child] and hits[other] > hits[child])):  # fmt: skip
            child = other
        if product < products[child] or (product == products[child] and hit > hits[child]):
            break
        products[at], hits[at] = products[child], hits[child]
        at, child = child, 2 * child + 1
    products[at], hits[at] = product, hit


@kernel(types.void(_float[::1], _int[::1], _float, _int))
def offer(products: Any, hits: Any, product: Any, hit: Any) -> None:
    """Adds a hit to a heap, if it is better than the worst, which it replaces."""
    if product > products[0] or (product == products[0] and hit < hits[0]):
        _replace_root(products, hits, hits.shape[0], product, hit)


@kernel(_int(_float[::1], _int[::1]))
def put_in_order(products: Any, hits: Any) -> Any:
    """Sorts a heap, best first; returns how many hits it has."""
    count = hits.shape[0]
    for last in range(hits.shape[0] - 1, -1, -1):
        worst, hit = products[0], hits[0]
        _replace_root(products, hits, last, products[last], hits[last])
        products[last], hits[last] = worst, hit
        count -= hit == _NONE
    return count


@kernel(_int(_VECTOR, _float[::1], _int[::1]))
def _largest_of(values: Any, products: Any, hits: Any) -> Any:
    empty_heap(products, hits)
    for n in range(values.shape[0]):
        offer(products, hits, values[n], n)
    return put_in_order(products, hits)


@kernel(types.void(_VECTORS, read_only(_int, 1), _VECTOR, _float[::1]))
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
        hits = np.empty(min(k, len(values_N)), np.int64)
        return hits[: _largest_of(values_N, np.empty(len(hits), np.float32), hits) if k > 0 else 0]
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
