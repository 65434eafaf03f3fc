"""The compiled loops of the inverted lists: products of a query with pages, the best k, moves between lists.

A page holds the vectors of ``LANES`` places, dimension by dimension, so that the products of a whole page
are made side by side. In the pages of items, numbers are bytes times a scale that each vector has of its
own: a search reads a quarter of the memory. Bytes only say who might be among the best; who might be has its
product made from its numbers themselves, from the first dimension to the last. So nothing is lost by the
bytes, and what is found depends on no place in a page.

Legend: P pages, V dimensions, L lanes, C lists, K results, N items. ``codes`` (P, V, L), ``scales`` (P, L);
``ids`` (P, L) the item of each place; ``chains`` (P, 2) the page after and the page before; ``ends`` (C, 3)
the first page, the last page and the items of a list; ``where`` (N, 2) the list and place (page · L + lane)
of an item, -1 for none; ``spare`` the free pages, of which there are ``left[0]``; ``rows`` (N, V).
"""

from typing import Any, Final

import numpy as np
from numba import types

from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.prefetch import LINE, prefetch_once

LANES: Final = 64
_TOGETHER: Final = 16  # vectors that a page of centroids is read for at once
_int, _short, _float = types.int64, types.int32, types.float32
_PAGES, _CODES, _GRID = read_only(_float, 3), types.int8[:, :, ::1], _float[:, ::1]
_VECTOR, _VECTORS = read_only(_float, 1), read_only(_float, 2)
_TABLE, _SHORTS, _INTS, _FLOATS = _short[:, ::1], _short[::1], _int[::1], _float[::1]
_BITS, _KEYS, _GIVEN = read_only(types.uint8, 1), read_only(_int, 1), read_only(_short, 1)


@kernel(types.void(_PAGES, _int, _VECTORS, _int, _FLOATS))
def page_products(pages: Any, page: Any, queries: Any, which: Any, out: Any) -> None:
    """The products of a query with one page of centroids (L,). Four dimensions at a time, with the query's
    numbers read before: else sums wait in memory, or the compiler fears that they are what is read."""
    its, query = pages[page], queries[which]
    for lane in range(LANES):
        out[lane] = np.float32(0)
    whole = query.shape[0] - query.shape[0] % 4
    for v in range(0, whole, 4):
        one, two, three, four = query[v], query[v + 1], query[v + 2], query[v + 3]
        for lane in range(LANES):
            total = out[lane] + one * its[v, lane]
            total += two * its[v + 1, lane]
            total += three * its[v + 2, lane]
            out[lane] = total + four * its[v + 3, lane]
    for v in range(whole, query.shape[0]):
        for lane in range(LANES):
            out[lane] += query[v] * its[v, lane]


@kernel(types.void(_CODES, _int, _VECTOR, _FLOATS))
def code_products(codes: Any, page: Any, query: Any, out: Any) -> None:
    """The products of a query with the bytes of one page (L,)."""
    its = codes[page]
    for lane in range(LANES):
        out[lane] = np.float32(0)
    whole = query.shape[0] - query.shape[0] % 4
    for v in range(0, whole, 4):
        one, two, three, four = query[v], query[v + 1], query[v + 2], query[v + 3]
        for lane in range(LANES):
            total = out[lane] + one * np.float32(its[v, lane])
            total += two * np.float32(its[v + 1, lane])
            total += three * np.float32(its[v + 2, lane])
            out[lane] = total + four * np.float32(its[v + 3, lane])
    for v in range(whole, query.shape[0]):
        for lane in range(LANES):
            out[lane] += query[v] * np.float32(its[v, lane])


@kernel(_float(_VECTORS, _int, _VECTOR))
def product(rows: Any, index: Any, query: Any) -> Any:
    """The product of a query with one item's vector, added up in order."""
    total = np.float32(0)
    for v in range(query.shape[0]):
        total += query[v] * rows[index, v]
    return total


@kernel(types.boolean(_float, _int, _float, _int))
def before(its: Any, index: Any, other: Any, its_index: Any) -> Any:
    """Whether a result comes before another: the larger product, and of equals the smaller index."""
    return its > other or (its == other and index < its_index)


@kernel(_int(_FLOATS, _INTS, _int, _float, _int))
def keep(best: Any, indices: Any, count: Any, its: Any, index: Any) -> Any:
    """Puts a result among the best K, a heap with the last of them on top; returns how many there are."""
    if count < best.shape[0]:
        at, count = count, count + 1
        while at > 0:
            above = (at - 1) // 2
            if not before(best[above], indices[above], its, index):
                break
            best[at], indices[at] = best[above], indices[above]
            at = above
    else:
        if not before(its, index, best[0], indices[0]):
            return count
        at = 0
        while True:
            below = 2 * at + 1
            if below >= count:
                break
            if below + 1 < count and before(
                best[below], indices[below], best[below + 1], indices[below + 1]
            ):
                below += 1
            if not before(its, index, best[below], indices[below]):
                break
            best[at], indices[at] = best[below], indices[below]
            at = below
    best[at], indices[at] = its, index
    return count


@kernel(types.void(_PAGES, _VECTORS, _FLOATS))
def centroid_products(centroids: Any, query: Any, out: Any) -> None:
    """The products of a query (1, V) with all centroids (P · L,)."""
    for page in range(centroids.shape[0]):
        page_products(centroids, page, query, 0, out[page * LANES : (page + 1) * LANES])


@kernel(types.void(_PAGES, _VECTOR, _VECTORS, _SHORTS))
def assign(centroids: Any, shift: Any, vectors: Any, out: Any) -> None:
    """The list of each vector: the largest product with its centroid plus ``shift``, of equals the first. One
    with a number that isn't one goes to the first list."""
    found = np.empty(LANES, np.float32)
    best = np.empty((_TOGETHER, LANES), np.float32)
    where = np.empty((_TOGETHER, LANES), np.int32)
    for start in range(0, vectors.shape[0], _TOGETHER):
        size = min(_TOGETHER, vectors.shape[0] - start)
        best[:], where[:] = np.float32(-np.inf), np.int32(0)
        for page in range(centroids.shape[0]):
            for i in range(size):
                page_products(centroids, page, vectors, start + i, found)
                for lane in range(LANES):
                    score = found[lane] + shift[page * LANES + lane]
                    better = score > best[i, lane]
                    best[i, lane] = score if better else best[i, lane]
                    where[i, lane] = np.int32(page) if better else where[i, lane]
        for i in range(size):
            top, its = best[i, 0], _int(where[i, 0]) * LANES
            for lane in range(1, LANES):
                number = _int(where[i, lane]) * LANES + lane
                if before(best[i, lane], number, top, its):
                    top, its = best[i, lane], number
            out[start + i] = np.int32(its if top > -np.inf else 0)


@kernel(
    _int(
        _CODES, _GRID, _TABLE, _TABLE, _TABLE, _KEYS, _VECTORS, _VECTOR, _float, _BITS, _FLOATS, _INTS
    )
)  # fmt: skip
def scan(
    codes: Any, scales: Any, ids: Any, chains: Any, ends: Any, lists: Any,
    rows: Any, query: Any, reach: Any, wanted: Any, best: Any, indices: Any,
) -> Any:  # fmt: skip
    """The K wanted items of some lists with the largest products, in no order; how many there are. ``reach``
    times a vector's scale is as far as its product may be from that of its bytes."""
    out, count = np.empty(LANES, np.float32), 0
    floor, size = np.float32(-np.inf), codes.shape[1] * LANES
    for probe in range(lists.shape[0]):
        page, left = ends[lists[probe], 0], ends[lists[probe], 2]
        while left > 0:
            after = _int(page)
            if left > LANES:
                after = _int(chains[page, 0])
            elif probe + 1 < lists.shape[0]:
                after = _int(ends[lists[probe + 1], 0])
            for byte in range(0, size if after != page else 0, LINE):
                prefetch_once(codes, after * size + byte)
            code_products(codes, page, query, out)
            hits = 0  # most pages have none
            for lane in range(LANES):
                out[lane] = (out[lane] + reach) * scales[page, lane]
                hits += out[lane] >= floor
            for lane in range(min(left, LANES) if hits else 0):
                if out[lane] >= floor:
                    index = ids[page, lane]
                    if wanted[index >> 3] >> (index & 7) & 1:
                        its = product(rows, index, query)
                        if its > -np.inf:
                            count = keep(best, indices, count, its, index)
                            if count == best.shape[0]:
                                floor = best[0]
            left -= LANES
            page = chains[page, 0]
    return count


@kernel(_int(_CODES, _GRID, _TABLE, _TABLE, _TABLE, _TABLE, _CODES, _GRID, _TABLE, _TABLE))
def compact(
    codes: Any, scales: Any, ids: Any, chains: Any, ends: Any, where: Any,
    new_codes: Any, new_scales: Any, new_ids: Any, new_chains: Any,
) -> Any:  # fmt: skip
    """Copies the pages of each list side by side, list after list; how many pages there are."""
    count = 0
    for its in range(ends.shape[0]):
        page, left, first = ends[its, 0], ends[its, 2], count
        while left > 0:
            new_codes[count], new_scales[count], new_ids[count] = (
                codes[page],
                scales[page],
                ids[page],
            )
            for lane in range(min(left, LANES)):
                where[ids[page, lane], 1] = count * LANES + lane
            new_chains[count, 0] = count + 1 if left > LANES else -1
            new_chains[count, 1] = count - 1 if count > first else -1
            page, left, count = chains[page, 0], left - LANES, count + 1
        ends[its, 0] = first if count > first else -1
        ends[its, 1] = count - 1 if count > first else -1
    return count


@kernel(types.void(_CODES, _GRID, _TABLE, _TABLE, _TABLE, _TABLE, _SHORTS, _INTS, _int))
def take_out(
    codes: Any, scales: Any, ids: Any, chains: Any, ends: Any, where: Any, spare: Any, left: Any,
    index: Any,
) -> None:  # fmt: skip
    """Takes an item out of its list, if it is in one: the last of the list goes to its place."""
    its = where[index, 0]
    if its < 0:
        return
    page, lane = where[index, 1] // LANES, where[index, 1] % LANES
    last, end = ends[its, 1], (ends[its, 2] - 1) % LANES
    moved = ids[last, end]
    for v in range(codes.shape[1]):
        codes[page, v, lane] = codes[last, v, end]
    scales[page, lane], ids[page, lane] = scales[last, end], moved
    where[moved, 1] = where[index, 1]
    where[index, 0] = where[index, 1] = -1
    ends[its, 2] -= 1
    if end == 0:
        spare[left[0]] = last
        left[0] += 1
        ends[its, 1] = chains[last, 1]


@kernel(types.void(_CODES, _GRID, _int, _int, _VECTORS, _int))
def write(codes: Any, scales: Any, page: Any, lane: Any, vectors: Any, i: Any) -> None:
    """A vector in bytes. One with a number that isn't one has a scale that isn't one, and is never found."""
    largest, sound = np.float32(0), True
    for v in range(vectors.shape[1]):
        size = abs(vectors[i, v])
        largest = max(largest, size)
        sound = sound and size < np.inf
    scale = largest / np.float32(127)
    if (
        not sound or scale == 0
    ):  # all zeros, or too small to be divided by: then half of this is the most
        scales[page, lane] = largest * np.float32(2) if sound else np.float32(np.nan)
        for v in range(vectors.shape[1]):
            codes[page, v, lane] = 0
        return
    scales[page, lane] = scale
    for v in range(vectors.shape[1]):
        number = vectors[i, v] / scale
        codes[page, v, lane] = np.int8(number + np.float32(0.5 if number >= 0 else -0.5))


@kernel(
    types.void(
        _CODES, _GRID, _TABLE, _TABLE, _TABLE, _TABLE, _SHORTS, _INTS, _KEYS, _GIVEN, _VECTORS
    )
)
def put(
    codes: Any, scales: Any, ids: Any, chains: Any, ends: Any, where: Any, spare: Any, left: Any,
    indices: Any, lists: Any, vectors: Any,
) -> None:  # fmt: skip
    """Puts items into lists with their vectors, wherever they were before. There must be pages to spare."""
    for i in range(indices.shape[0]):
        index, its = indices[i], lists[i]
        if where[index, 0] != its:
            take_out(codes, scales, ids, chains, ends, where, spare, left, index)
            lane = ends[its, 2] % LANES
            if lane == 0:
                left[0] -= 1
                page = spare[left[0]]
                if ends[its, 2] == 0:
                    ends[its, 0] = page
                else:
                    chains[ends[its, 1], 0] = page
                chains[page, 1] = ends[its, 1]
                ends[its, 1] = page
            ids[ends[its, 1], lane] = index
            where[index, 0], where[index, 1] = its, ends[its, 1] * LANES + lane
            ends[its, 2] += 1
        write(codes, scales, where[index, 1] // LANES, where[index, 1] % LANES, vectors, i)


@kernel(_int(_VECTORS, _KEYS, _VECTOR, _BITS, _FLOATS, _INTS))
def scan_all(rows: Any, keys: Any, query: Any, wanted: Any, best: Any, found: Any) -> Any:
    """The K wanted items of all with the largest products, in no order, by their keys: of equals the smaller
    key. How many there are."""
    count = 0
    for index in range(rows.shape[0]):
        if wanted[index >> 3] >> (index & 7) & 1:
            its = product(rows, index, query)
            if its > -np.inf:
                count = keep(best, found, count, its, keys[index])
    return count


@kernel(types.void(_VECTORS, _VECTOR, _FLOATS))
def products(rows: Any, query: Any, out: Any) -> None:
    """The product of a query with each vector, as a search makes it."""
    for index in range(rows.shape[0]):
        out[index] = product(rows, index, query)
