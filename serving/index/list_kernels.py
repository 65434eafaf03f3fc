"""Compiled loops of inverted lists: vectors move between lists, and a search scans some of them.

A list is a chain of blocks of ``BLOCK`` vectors, all of them full but the first, whose last vector fills the
gap of one that leaves. A vector is held as a scale and a byte per dimension, so a scan reads a quarter of the
numbers. Bytes only give a bound of the product; a vector that may be among the best is multiplied itself.

Legend: C lists, B blocks, N vectors by number, M of them changed, V dimensions, K hits.
"""

from typing import Any, Final

import numpy as np
from numba import types

from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.prefetch import LINE, prefetch_line

BLOCK: Final = 32
_AHEAD: Final = 3  # blocks whose memory is requested before they are scanned
_BYTE: Final = np.float32(127)  # the largest number of a vector in its bytes
_SHORT: Final = (
    32_767  # the largest number of a query, unless its products would not fit into 32 bits
)
_INT: Final = 2**31 - 1
_NORMAL: Final = np.float32(1.2e-38)  # least number that is not subnormal
_SUBNORMAL: Final = np.float32(1e-42)  # more than what sums of subnormal numbers lose
_HALF: Final = 0.505  # bound of a rounding error, and of those of computing with it
_NONE: Final = 2**62  # number of a hit that is missing
_int, _float, _chain = types.int64, types.float32, types.int32[::1]
_CODES, _SCALES, _NUMBERS = types.int8[:, :, ::1], _float[:, ::1], types.int32[:, ::1]
_INDICES, _VECTOR, _VECTORS = read_only(_int, 1), read_only(_float, 1), read_only(_float, 2)
_QUERY = read_only(types.int16, 1)


@kernel(_float(_VECTOR, types.int8[::1]))
def encode(vector: Any, code: Any) -> Any:
    """Writes a vector's bytes; returns their scale, which is not finite if one of its numbers isn't."""
    size = np.float32(0)
    for v in range(vector.shape[0]):
        if not np.isfinite(vector[v]):
            code[:] = 0
            return np.float32(np.inf)
        size = max(size, abs(vector[v]))
    scale = max(size / _BYTE, _NORMAL)
    for v in range(vector.shape[0]):
        code[v] = np.int8(np.rint(vector[v] / scale))
    return scale


@kernel(types.void(_INDICES, _INDICES, _VECTORS, _CODES, _SCALES, _NUMBERS, *[_chain] * 5))
def put(indices: Any, lists: Any, vectors: Any, codes: Any, scales: Any, numbers: Any, following: Any,
        heads: Any, sizes: Any, list_of: Any, place_of: Any) -> None:  # fmt: skip
    """Puts vectors (M, V) into ``lists`` (M,); -1 takes them out. The first of ``heads`` (C + 1,) are those
    of the lists, the last is that of the free blocks, of which there must be enough."""
    for m in range(indices.shape[0]):
        n, to = indices[m], lists[m]
        old = list_of[n]
        if old != to and old >= 0:
            sizes[old] -= 1
            head, last = heads[old], sizes[old] % BLOCK
            block, place = place_of[n] // BLOCK, place_of[n] % BLOCK
            numbers[block, place], scales[block, place] = numbers[head, last], scales[head, last]
            codes[block, place] = codes[head, last]
            place_of[numbers[head, last]] = place_of[n]
            if last == 0:
                heads[old], following[head], heads[-1] = following[head], heads[-1], head
        list_of[n] = to
        if to < 0:
            continue
        if old != to:
            last = sizes[to] % BLOCK
            if last == 0:
                head = heads[-1]
                heads[-1], following[head], heads[to] = following[head], heads[to], head
            place_of[n] = heads[to] * BLOCK + last
            numbers[heads[to], last] = n
            sizes[to] += 1
        block, place = place_of[n] // BLOCK, place_of[n] % BLOCK
        scales[block, place] = encode(vectors[m], codes[block, place])


@kernel(_int(types.int8[:, ::1], _float[::1], _QUERY, _float, _float, _float, _float[::1]))
def bounds(codes: Any, scales: Any, query: Any, step: Any, error: Any, least: Any, out: Any) -> Any:
    """Writes upper bounds of the products of a block's first vectors; returns how many reach ``least``."""
    reach = 0
    for s in range(out.shape[0]):
        code, total = codes[s], np.int32(0)
        for v in range(query.shape[0]):
            total += np.int32(code[v]) * np.int32(query[v])
        out[s] = (np.float32(total) * step + error) * scales[s] + _SUBNORMAL
    for s in range(out.shape[0]):
        reach += not out[s] < least
    return reach


@kernel(types.void(_float[::1], _int[::1], _int, _float, _int))
def replace_worst(products: Any, hits: Any, count: Any, product: Any, hit: Any) -> None:
    """Replaces the root of a heap (``count``), its worst hit: the smallest product, of equals the largest
    number."""
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


@kernel(_int(_INDICES, _VECTOR, _VECTORS, read_only(types.uint8, 1), _CODES, _SCALES, _NUMBERS,
             *[_chain] * 3, _float[::1], _int[::1]))  # fmt: skip
def search(lists: Any, query: Any, vectors: Any, bits: Any, codes: Any, scales: Any, numbers: Any,
           following: Any, heads: Any, sizes: Any, products: Any, hits: Any) -> Any:  # fmt: skip
    """Writes the largest products (K,) of vectors in some lists, of those whose bit is set, and their
    numbers, best first; returns how many there are. Products are summed from the first dimension to the
    last."""
    k, dim, blocks, size, total = hits.shape[0], query.shape[0], 0, np.float32(0), 0.0
    for v in range(dim):
        size, total = max(size, abs(query[v])), total + abs(query[v])
    largest = min(_SHORT, _INT // (127 * dim))
    step = max(size / np.float32(largest), _NORMAL)
    rounded = np.empty(dim, np.int16)
    for v in range(dim):
        rounded[v] = np.int16(np.rint(query[v] / step))
    error = np.float32((_HALF + dim * 2.0**-15) * total + _HALF * 127 * dim * step)
    for i in range(lists.shape[0]):
        blocks += -(-sizes[lists[i]] // BLOCK)
    chain, counts = np.zeros(blocks + _AHEAD, np.int64), np.empty(blocks, np.int64)
    b = 0
    for i in range(lists.shape[0]):
        block, left = heads[lists[i]], np.int64(sizes[lists[i]])
        while left > 0:
            chain[b], counts[b] = block, (left - 1) % BLOCK + 1
            block, left, b = following[block], left - counts[b], b + 1
    products[:] = -np.inf
    hits[:] = _NONE
    reached = np.empty(BLOCK, np.float32)
    for b in range(blocks):
        coming = chain[b + _AHEAD] * BLOCK
        for byte in range(0, BLOCK * dim, LINE):
            prefetch_line(codes, coming * dim + byte)
        for byte in range(0, 4 * BLOCK, LINE):
            prefetch_line(scales, 4 * coming + byte)
        block, own = chain[b], reached[: counts[b]]
        if not bounds(codes[block], scales[block], rounded, step, error, products[0], own):
            continue
        for s in range(own.shape[0]):
            n = np.int64(numbers[block, s])
            if own[s] < products[0] or n >> 3 >= bits.shape[0] or not bits[n >> 3] >> (n & 7) & 1:
                continue
            product = np.float32(0)
            for v in range(dim):
                product += query[v] * vectors[n, v]
            if np.isfinite(product) and (
                product > products[0] or (product == products[0] and n < hits[0])):  # fmt: skip
                replace_worst(products, hits, k, product, n)
    count = k
    for last in range(k - 1, -1, -1):  # the worst of the heap goes behind it
        worst, hit = products[0], hits[0]
        replace_worst(products, hits, last, products[last], hits[last])
        products[last], hits[last] = worst, hit
        count -= hit == _NONE
    return count
