"""The compiled loops of ranking whole lists: what a request's items share once, the rest by tiles.

A tile is 16 items side by side, one in each lane: every lane does the same operations in the same order,
whatever stands in the others and wherever a list begins. So an item's numbers don't hang on its list.

Legend: R requests, N items (whole tiles), S slots (K of them the user's), D embedding, W = D + 1 a row's
numbers, T history, O outcomes, F dense, C columns of keys, P pairs of slots.
"""

from typing import Any, Final

import numpy as np
from numba import types

from recsys.arrays.compiled import kernel, read_only

LANES: Final = 16
_int, _float = types.int64, types.float32
_KEYS, _KEYS_2, _ROWS = read_only(_int, 1), read_only(_int, 2), read_only(_float, 2)
_ROWS_3, _ROWS_2_OUT, _KEYS_OUT = read_only(_float, 3), _float[:, ::1], _int[::1]


@kernel(types.void(_ROWS, _KEYS_2, _KEYS, _KEYS, _float[:, :, ::1]))
def pool_columns(rows: Any, index: Any, starts: Any, stops: Any, out: Any) -> None:
    """The mean row of each slot's columns into ``out`` (M, S, W), zeros where there is none: what
    ``row_kernels.pool`` makes of the same keys, bit for bit. ``index``: (M, C); the last row is none."""
    none, width = rows.shape[0] - 1, rows.shape[1]
    for m in range(index.shape[0]):
        for s in range(starts.shape[0]):
            to, there = out[m, s], 0
            for r in range(width):
                to[r] = np.float32(0)
            for c in range(starts[s], stops[s]):
                row = index[m, c]
                if row != none:
                    there += 1
                    for r in range(width):
                        to[r] += rows[row, r]
            if there > 1:
                for r in range(width):
                    to[r] /= np.float32(there)


@kernel(types.void(_ROWS_3, _ROWS_3, _ROWS_3, _ROWS_2_OUT))
def lay_shared(user: Any, history: Any, outcomes: Any, out: Any) -> None:
    """What a request's items share, into ``out`` (R, K · D + D + 2 · O): the user's rows, the mean row of
    what was liked, the mean outcomes and the newest. Without a history the user's rows alone."""
    slots, dim = user.shape[1], user.shape[2] - 1
    entries, kinds = history.shape[1], outcomes.shape[2]
    for r in range(user.shape[0]):
        to = out[r]
        for s in range(slots):
            for d in range(dim):
                to[s * dim + d] = user[r, s, d]
        if entries == 0:
            continue
        liked, mean = slots * dim, slots * dim + dim
        for c in range(liked, to.shape[0]):
            to[c] = np.float32(0)
        count = np.float32(0)
        for t in range(entries):
            what = outcomes[r, t]
            if what[kinds - 1] > 0:  # recency is positive for a real entry
                count += np.float32(1)
                for d in range(dim):
                    to[liked + d] += what[0] * history[r, t, d]
            for o in range(kinds):
                to[mean + o] += what[o]
        count = max(count, np.float32(1))
        for c in range(liked, mean + kinds):
            to[c] /= count
        for o in range(kinds):
            to[mean + kinds + o] = outcomes[r, 0, o]


@kernel(types.void(_ROWS, _ROWS, _ROWS_2_OUT))
def times(left: Any, right: Any, out: Any) -> None:
    """Adds the product of (R, I) and (I, J) to ``out`` (R, J), one input after the other."""
    for r in range(left.shape[0]):
        to = out[r]
        for i in range(left.shape[1]):
            value = left[r, i]
            for j in range(to.shape[0]):
                to[j] += value * right[i, j]


@kernel(types.void(_ROWS_2_OUT, _ROWS, _KEYS, types.boolean))
def add_shared(own: Any, shared: Any, owner: Any, positive: Any) -> None:
    """Adds to each item's numbers (N, J) those of its request (R, J); ``positive``: what is below 0 is 0."""
    for i in range(own.shape[0]):
        to, more = own[i], shared[owner[i]]
        for j in range(to.shape[0]):
            to[j] += more[j]
        if positive:
            for j in range(to.shape[0]):
                to[j] = max(to[j], np.float32(0))


@kernel(types.void(_ROWS_3, _ROWS_3, _KEYS, _int, _KEYS_OUT, *[_ROWS_2_OUT] * 3, _ROWS_3))
def _of_requests(
    user: Any,
    history: Any,
    owner: Any,
    first: Any,
    of: Any,
    rows: Any,
    past: Any,
    what: Any,
    outcomes: Any,
) -> None:
    """Puts into each lane what belongs to its item's request, where another's stands there (``of``)."""
    dim, kinds = user.shape[2] - 1, outcomes.shape[2]
    for lane in range(LANES):
        r = owner[first + lane]
        if of[lane] == r:
            continue
        of[lane] = r
        for s in range(user.shape[1]):
            for d in range(dim):
                rows[s * dim + d, lane] = user[r, s, d]
        for t in range(history.shape[1]):
            for d in range(dim):
                past[t * dim + d, lane] = history[r, t, d]
            for o in range(kinds):
                what[t * kinds + o, lane] = outcomes[r, t, o]


@kernel(types.void(_ROWS_3, _int, _int, _ROWS_2_OUT, _ROWS_2_OUT, _float[::1]))
def _of_items(items: Any, first: Any, known: Any, rows: Any, out: Any, main: Any) -> None:
    """Puts each item's rows into its lane and in front of ``out``, and adds its linear terms to ``main``."""
    dim = items.shape[2] - 1
    for lane in range(LANES):
        to = out[first + lane]
        for s in range(items.shape[1]):
            each = items[first + lane, s]
            for d in range(dim):
                rows[(known + s) * dim + d, lane] = each[d]
                to[s * dim + d] = each[d]
            main[first + lane] += each[dim]


@kernel(types.void(_ROWS, _ROWS, _int, _int, _int, _float[::1]))
def _dot(left: Any, right: Any, a: Any, b: Any, dim: Any, out: Any) -> None:
    """The product of the rows that begin at a and at b, in each lane. Four dimensions at a time, added up one
    after the other: else each sum waits in memory for the next."""
    for lane in range(LANES):
        out[lane] = np.float32(0)
    whole = dim - dim % 4
    for d in range(0, whole, 4):
        for lane in range(LANES):
            total = out[lane] + left[a + d, lane] * right[b + d, lane]
            total += left[a + d + 1, lane] * right[b + d + 1, lane]
            total += left[a + d + 2, lane] * right[b + d + 2, lane]
            out[lane] = total + left[a + d + 3, lane] * right[b + d + 3, lane]
    for d in range(whole, dim):
        for lane in range(LANES):
            out[lane] += left[a + d, lane] * right[b + d, lane]


@kernel(types.void(_ROWS, _ROWS, _ROWS, _int, _float, _int, _ROWS_2_OUT))
def _attend(
    rows: Any, past: Any, what: Any, item_at: Any, sharpness: Any, dim: Any, found: Any
) -> None:
    """The rows and outcomes of the history (D + O, lanes), weighed by a softmax over its real entries."""
    entries, kinds = past.shape[0] // dim, found.shape[0] - dim
    near, total = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    found[:] = np.float32(0)
    for t in range(entries):
        _dot(rows, past, item_at, t * dim, dim, near)
        for lane in range(LANES):
            like = min(max(near[lane] * sharpness, np.float32(-8)), np.float32(8))
            there = what[t * kinds + kinds - 1, lane] > 0
            near[lane] = np.exp(like) if there else np.float32(0)
            total[lane] += near[lane]
        for d in range(dim):
            for lane in range(LANES):
                found[d, lane] += near[lane] * past[t * dim + d, lane]
        for o in range(kinds):
            for lane in range(LANES):
                found[dim + o, lane] += near[lane] * what[t * kinds + o, lane]
    for c in range(dim + kinds):
        for lane in range(LANES):
            found[c, lane] /= total[lane] if total[lane] > 0 else np.float32(1)  # 0 without any


@kernel(
    types.void(
        _ROWS_3, _ROWS_3, _KEYS, _ROWS_3, _ROWS_3, _int, _float, _ROWS, _ROWS_2_OUT, _float[::1]
    )
)
def lay_items(
    user: Any,
    items: Any,
    owner: Any,
    history: Any,
    outcomes: Any,
    item_slot: Any,
    sharpness: Any,
    dense: Any,
    out: Any,
    main: Any,
) -> None:
    """What is an item's own, into ``out`` (N, (S - K) · D + P + F + D + O): its rows, the product of each two
    slots, dense, and what it attends to; the sum of products and linear terms into ``main`` (N,).

    ``item_slot``: whose row is compared with those of the history.
    """
    known, own, dim = user.shape[1], items.shape[1], items.shape[2] - 1
    slots, entries, kinds = known + own, history.shape[1], outcomes.shape[2]
    rows = np.empty((slots * dim, LANES), np.float32)
    past = np.empty((entries * dim, LANES), np.float32)
    what = np.empty((entries * kinds, LANES), np.float32)
    found = np.empty((dim + kinds, LANES), np.float32)
    near = np.empty(LANES, np.float32)
    of = np.full(LANES, -1, np.int64)  # whose request stands in a lane
    for first in range(0, items.shape[0], LANES):
        _of_requests(user, history, owner, first, of, rows, past, what, outcomes)
        for lane in range(LANES):
            main[first + lane] = np.float32(0)
            for s in range(known):
                main[first + lane] += user[owner[first + lane], s, dim]
        _of_items(items, first, known, rows, out, main)
        at = own * dim
        for s in range(slots):
            for t in range(s + 1, slots):
                _dot(rows, rows, s * dim, t * dim, dim, near)
                for lane in range(LANES):
                    out[first + lane, at] = near[lane]
                    main[first + lane] += near[lane]
                at += 1
        for lane in range(LANES):
            out[first + lane, at : at + dense.shape[1]] = dense[first + lane]
        if entries > 0:
            _attend(rows, past, what, item_slot * dim, sharpness, dim, found)
            at += dense.shape[1]
            for lane in range(LANES):
                for c in range(dim + kinds):
                    out[first + lane, at + c] = found[c, lane]
