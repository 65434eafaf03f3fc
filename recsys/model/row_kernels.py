"""Compiled loops between keys and the ranker: de-duplication, jagged columns, pooled rows, their pairs.

One pass each, for which torch needs a sort, an index and two copies. Each example is computed alone, in the
order written: its numbers depend neither on the batch nor on memory alignment.

Legend: N places, U unique keys, B batch, S slots, R a row's numbers, D = R - 1 of them an embedding,
P pairs of slots.
"""

from typing import Any

import numpy as np
from numba import types

from recsys.arrays.compiled import kernel, mix, read_only

_int, _short, _float = types.int64, types.int32, types.float32
_KEYS, _KEYS_2, _OUT = read_only(_int, 1), read_only(_int, 2), _int[::1]
_ROWS, _ROWS_3, _NUMBERS = read_only(_float, 2), read_only(_float, 3), read_only(_float, 1)


@kernel(_int(_KEYS, _short[::1], _OUT, _OUT))
def distinct(keys: Any, cells: Any, unique: Any, at: Any) -> Any:
    """Writes the unique non-zero keys in order of first occurrence, and each key's index among them (after
    the last for 0); returns their number. ``cells``: a power of two above N, all below 0."""
    mask, count = np.uint64(cells.shape[0] - 1), 0
    for i in range(keys.shape[0]):
        key = keys[i]
        if key == 0:
            at[i] = -1
            continue
        cell = mix(np.uint64(key)) & mask
        while cells[cell] >= 0 and unique[cells[cell]] != key:
            cell = (cell + np.uint64(1)) & mask
        if cells[cell] < 0:
            cells[cell] = count
            unique[count] = key
            count += 1
        at[i] = cells[cell]
    for i in range(keys.shape[0]):
        if at[i] < 0:
            at[i] = count
    return count


@kernel(_int(_KEYS_2, _KEYS, _KEYS, _OUT, _OUT, _int))
def jag(matrix: Any, starts: Any, stops: Any, values: Any, lengths: Any, count: Any) -> Any:
    """Appends the non-zero keys of some columns after the first ``count`` values, slot by slot and within a
    slot row by row, with a length for each; returns the new number of values."""
    size = matrix.shape[0]
    for s in range(starts.shape[0]):
        for b in range(size):
            before = count
            for c in range(starts[s], stops[s]):
                if matrix[b, c] != 0:
                    values[count] = matrix[b, c]
                    count += 1
            lengths[s * size + b] = count - before
    return count


@kernel(types.void(_KEYS, _OUT))
def begin(lengths: Any, starts: Any) -> None:
    """Writes the start of each bag's places."""
    at = 0
    for bag in range(lengths.shape[0]):
        starts[bag] = at
        at += lengths[bag]


@kernel(types.void(_ROWS, _KEYS, _KEYS, _float[:, :, ::1]))
def pool(rows: Any, index: Any, lengths: Any, out: Any) -> None:
    """Writes the mean row of each bag into ``out`` (B, S, R): bag s · B + b goes to (b, s), zeros for an
    empty one. Places of the last row don't count.

    Bags are stored slot by slot, but the loop goes example by example, as in ``spread``: writing ``out`` from
    front to back takes less than half the time once it is larger than a core's cache.
    """
    none = rows.shape[0] - 1
    size, slots, width = out.shape
    starts = np.empty(lengths.shape[0], np.int64)
    begin(lengths, starts)
    for b in range(size):
        for s in range(slots):
            start, count = starts[s * size + b], lengths[s * size + b]
            if count == 1 and index[start] != none:
                own = index[start]
                for r in range(width):
                    out[b, s, r] = rows[own, r]
                continue
            for r in range(width):
                out[b, s, r] = np.float32(0)
            pooled = 0
            for i in range(start, start + count):
                row = index[i]
                if row != none:
                    pooled += 1
                    for r in range(width):
                        out[b, s, r] += rows[row, r]
            if pooled > 1:
                for r in range(width):
                    out[b, s, r] /= np.float32(pooled)


@kernel(types.void(_ROWS_3, _KEYS, _KEYS, _float[:, ::1]))
def spread(gradients: Any, index: Any, lengths: Any, out: Any) -> None:
    """Adds the gradients of ``pool``'s bags (B, S, R) to the gradients of their rows, example by example."""
    none = out.shape[0] - 1
    size, slots, width = gradients.shape
    starts = np.empty(lengths.shape[0], np.int64)
    begin(lengths, starts)
    for b in range(size):
        for s in range(slots):
            start = starts[s * size + b]
            stop = start + lengths[s * size + b]
            pooled = 0
            for i in range(start, stop):
                pooled += index[i] != none
            for i in range(start, stop):
                row = index[i]
                if row == none:
                    continue
                if pooled == 1:
                    for r in range(width):
                        out[row, r] += gradients[b, s, r]
                else:
                    for r in range(width):
                        out[row, r] += gradients[b, s, r] / np.float32(pooled)


@kernel(types.void(_ROWS_3, _float[:, :, ::1], _float[:, ::1], _float[::1]))
def lay_out(rows: Any, aligned: Any, wide: Any, main: Any) -> None:
    """Writes embeddings into ``aligned`` (B, S, at least D) and the front of ``wide`` (B, S · D + P), and the
    sum of the linear terms into ``main`` (B,)."""
    slots, dim = rows.shape[1], rows.shape[2] - 1
    for b in range(rows.shape[0]):
        row, near, far, total = rows[b], aligned[b], wide[b], np.float32(0)
        for s in range(slots):
            for d in range(dim):
                near[s, d] = row[s, d]
                far[s * dim + d] = row[s, d]
            total += row[s, dim]
        main[b] = total


@kernel(types.void(_ROWS_3, _float[:, ::1], _float[::1]))
def take_pairs(dots: Any, wide: Any, main: Any) -> None:
    """Copies the upper triangle of ``dots`` (B, S, S) into ``wide``; adds its sum to ``main``."""
    slots = dots.shape[1]
    sums = np.empty(slots, np.float32)
    for b in range(dots.shape[0]):
        at = wide.shape[1] - slots * (slots - 1) // 2
        sums[:] = np.float32(0)
        for s in range(slots - 1):
            count = slots - s - 1
            own, out = dots[b, s, s + 1 :], wide[b, at : at + count]
            for t in range(count):
                out[t] = own[t]
                sums[t] += own[t]
            at += count
        for s in range(slots):
            main[b] += sums[s]


@kernel(types.void(_ROWS, _NUMBERS, _float[:, :, ::1]))
def lay_pairs(wide: Any, main: Any, pairs: Any) -> None:
    """Writes the gradients of the products into ``pairs`` (B, S, S), symmetric with a zero diagonal."""
    slots = pairs.shape[1]
    for b in range(pairs.shape[0]):
        at, each, more = wide.shape[1] - slots * (slots - 1) // 2, pairs[b], main[b]
        for s in range(slots):
            each[s, s] = np.float32(0)
            count = slots - s - 1
            own = wide[b, at : at + count]
            for t in range(count):
                each[s, s + 1 + t] = own[t] + more
                each[s + 1 + t, s] = own[t] + more
            at += count


@kernel(types.void(_ROWS_3, _ROWS, _NUMBERS, _float[:, :, ::1]))
def add_up(products: Any, wide: Any, main: Any, out: Any) -> None:
    """Writes the gradients of rows (B, S, R): through the products and through ``wide``; ``main`` is the
    gradient of each linear term."""
    slots, dim = out.shape[1], out.shape[2] - 1
    for b in range(out.shape[0]):
        each, near, far = out[b], products[b], wide[b]
        for s in range(slots):
            for d in range(dim):
                each[s, d] = near[s, d] + far[s * dim + d]
            each[s, dim] = main[b]
