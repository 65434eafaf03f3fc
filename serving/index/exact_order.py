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


@kernel(_int(_VECTOR, read_only(_int, 1), _float[::1], _int[::1]))
def _collect(products: Any, hits: Any, best_products: Any, best_hits: Any) -> Any:
    empty_heap(best_products, best_hits)
    for n in range(hits.shape[0]):
        offer(best_products, best_hits, products[n], hits[n])
    return put_in_order(best_products, best_hits)


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


def largest(products_N: Vectors, hits_N: Indices, k: int) -> Hits:
    """The k hits (distinct) with the largest products that are numbers, of equals the smallest hits."""
    hits = np.empty(max(0, min(k, len(hits_N))), np.int64)
    products = np.empty(len(hits), np.float32)
    count = _collect(products_N, hits_N, products, hits) if len(hits) else 0
    return hits[:count], products[:count]
