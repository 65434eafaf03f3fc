"""Exact order of approximate hits: products summed in a fixed order, and equals sorted by key.

FAISS computes products by SIMD kernels whose last bit can depend on a vector's position in its list, from
half precision in lists, and returns equals in any order. Its hits are therefore only candidates: their
products are computed again here, and more hits are fetched while one that was left out might belong to the
best k.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only

Indices = NDArray[np.int64]
Vectors = NDArray[np.float32]
# Bounds on the error of an approximate product, relative to the sum of its absolute terms. Twice the rounding
# error of one operation: a product that was left out and one that was fetched may both be off.
FLOAT32: Final = 2.0**-18  # 32 additions
FLOAT16: Final = 2.0**-10
_VECTORS, _VECTOR = read_only(types.float32, 2), read_only(types.float32, 1)


@kernel(types.float32(_VECTORS, read_only(types.int64, 1), _VECTOR, types.float32[::1]))
def products_at(rows: Any, indices: Any, query: Any, out: Any) -> Any:
    """Product of a query with each of some rows, summed from the first dimension to the last. Returns the
    largest finite sum of absolute terms, which bounds rounding errors."""
    largest = np.float32(0)
    for i in range(indices.shape[0]):
        total = size = np.float32(0)
        for v in range(query.shape[0]):
            term = query[v] * rows[indices[i], v]
            total += term
            size += abs(term)
        out[i] = total
        if size < np.inf:
            largest = max(largest, size)
    return largest


def products(rows_NV: Vectors, query_V: Vectors) -> Vectors:
    """Products (N,) of a query with all rows, as ``exact_best`` computes them."""
    out = np.empty(len(rows_NV), np.float32)
    products_at(np.ascontiguousarray(rows_NV), np.arange(len(rows_NV)), query_V, out)
    return out


def exact_best(
    fetch: Callable[[int], Indices], rows_NV: Vectors, query_V: Vectors, k: int, most: int,
    error: float, spare: int = 16, keys_N: Indices | None = None,
) -> tuple[Indices, Vectors]:  # fmt: skip
    """The k best hits as (indices, products): by product, of equals by key (by index without ``keys_N``).

    ``fetch(n)`` returns up to n candidates, the best by approximate product; ``most``: how many candidates
    there can be; ``error``: bound on the relative error of approximate products; ``spare``: hits fetched
    beyond k at first. Hits without a finite product are dropped.
    """
    size = min(most, k + spare)
    while True:
        indices = fetch(size)
        products_M = np.empty(len(indices), np.float32)
        largest = float(products_at(rows_NV, indices, query_V, products_M))
        complete = len(indices) < size or size >= most
        finite = np.isfinite(products_M)
        indices, products_M = indices[finite], products_M[finite]
        keys = indices if keys_N is None else keys_N[indices]
        order = np.lexsort((keys, -products_M))
        best = order[:k]
        if complete or (
            len(best) == k and products_M[best[-1]] - products_M[order[-1]] > error * largest
        ):
            return indices[best], products_M[best]
        size = min(most, 2 * size)
