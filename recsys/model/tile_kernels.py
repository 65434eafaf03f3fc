"""Compiled loops that rank whole lists: the shared part once per request, the rest in tiles.

A tile is 16 items side by side, one per lane. Every lane does the same operations in the same order, whatever
the other lanes hold and wherever a list begins. So an item's numbers don't depend on its list.

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
    """Writes the mean row of each slot's columns into ``out`` (M, S, W), zeros without any; bit for bit equal
    to ``row_kernels.pool``. ``index``: (M, C); the last row doesn't count."""
    none, width = rows.shape[0] - 1, rows.shape[1]
    for m in range(index.shape[0]):
        for s in range(starts.shape[0]):
            to, pooled = out[m, s], 0
            for r in range(width):
                to[r] = np.float32(0)
            for c in range(starts[s], stops[s]):
                row = index[m, c]
                if row != none:
                    pooled += 1
                    for r in range(width):
                        to[r] += rows[row, r]
            if pooled > 1:
                for r in range(width):
                    to[r] /= np.float32(pooled)


@kernel(types.void(_ROWS_3, _ROWS_3, _ROWS_3, _ROWS_2_OUT))
def lay_shared(user: Any, history: Any, outcomes: Any, out: Any) -> None:
    """Writes the shared inputs of a request's items into ``out`` (R, K · D + D + 2 · O): the user's rows, the
    mean row of liked items, the mean outcomes and the newest. Without a history only the user's rows."""
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
            outcome = outcomes[r, t]
            if outcome[kinds - 1] > 0:  # recency is positive for a real entry
                count += np.float32(1)
                for d in range(dim):
                    to[liked + d] += outcome[0] * history[r, t, d]
            for o in range(kinds):
                to[mean + o] += outcome[o]
        count = max(count, np.float32(1))
        for c in range(liked, mean + kinds):
            to[c] /= count
        for o in range(kinds):
            to[mean + kinds + o] = outcomes[r, 0, o]


@kernel(types.void(_ROWS, _ROWS, _ROWS_2_OUT))
def times(left: Any, right: Any, out: Any) -> None:
    """Adds the product of (R, I) and (I, J) to ``out`` (R, J), in the order of inputs."""
    for r in range(left.shape[0]):
        to = out[r]
        for i in range(left.shape[1]):
            value = left[r, i]
            for j in range(to.shape[0]):
                to[j] += value * right[i, j]


@kernel(types.void(_ROWS_2_OUT, _ROWS, _KEYS, types.boolean))
def add_shared(own: Any, shared: Any, owner: Any, positive: Any) -> None:
    """Adds each request's numbers (R, J) to those of its items (N, J); ``positive`` applies a ReLU."""
    for i in range(own.shape[0]):
        to, more = own[i], shared[owner[i]]
        for j in range(to.shape[0]):
            to[j] += more[j]
        if positive:
            for j in range(to.shape[0]):
                to[j] = max(to[j], np.float32(0))


@kernel(types.void(_ROWS_3, _ROWS_3, _KEYS, _int, _KEYS_OUT, *[_ROWS_2_OUT] * 3, _ROWS_3))
def _of_requests(user: Any, history: Any, owner: Any, first: Any, lane_owner: Any, rows: Any,
                 entries: Any, results: Any, outcomes: Any) -> None:  # fmt: skip
    """Loads the data of its item's request into each lane that holds another request's (``lane_owner``)."""
    dim, kinds = user.shape[2] - 1, outcomes.shape[2]
    for lane in range(LANES):
        r = owner[first + lane]
        if lane_owner[lane] == r:
            continue
        lane_owner[lane] = r
        for s in range(user.shape[1]):
            for d in range(dim):
                rows[s * dim + d, lane] = user[r, s, d]
        for t in range(history.shape[1]):
            for d in range(dim):
                entries[t * dim + d, lane] = history[r, t, d]
            for o in range(kinds):
                results[t * kinds + o, lane] = outcomes[r, t, o]


@kernel(types.void(_ROWS_3, _int, _int, _ROWS_2_OUT, _ROWS_2_OUT, _float[::1]))
def _of_items(items: Any, first: Any, user_slots: Any, rows: Any, out: Any, main: Any) -> None:
    """Loads each item's rows into its lane and ``out``, and adds linear terms to ``main``."""
    dim = items.shape[2] - 1
    for lane in range(LANES):
        to = out[first + lane]
        for s in range(items.shape[1]):
            each = items[first + lane, s]
            for d in range(dim):
                rows[(user_slots + s) * dim + d, lane] = each[d]
                to[s * dim + d] = each[d]
            main[first + lane] += each[dim]


@kernel(types.void(_ROWS, _ROWS, _int, _int, _int, _float[::1]))
def _dot(left: Any, right: Any, a: Any, b: Any, dim: Any, out: Any) -> None:
    """Writes the dot product of the rows at a and b in each lane. Four dimensions per pass, summed in order:
    otherwise each partial sum goes through memory."""
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
    rows: Any, entries: Any, results: Any, item_at: Any, sharpness: Any, dim: Any, attended: Any
) -> None:
    """Writes the history's rows and outcomes (D + O, lanes), weighted by a softmax over its real entries."""
    length, kinds = entries.shape[0] // dim, attended.shape[0] - dim
    near, total = np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    attended[:] = np.float32(0)
    for t in range(length):
        _dot(rows, entries, item_at, t * dim, dim, near)
        for lane in range(LANES):
            like = min(max(near[lane] * sharpness, np.float32(-8)), np.float32(8))
            is_real = results[t * kinds + kinds - 1, lane] > 0
            near[lane] = np.exp(like) if is_real else np.float32(0)
            total[lane] += near[lane]
        for d in range(dim):
            for lane in range(LANES):
                attended[d, lane] += near[lane] * entries[t * dim + d, lane]
        for o in range(kinds):
            for lane in range(LANES):
                attended[dim + o, lane] += near[lane] * results[t * kinds + o, lane]
    for c in range(dim + kinds):
        for lane in range(LANES):
            attended[c, lane] /= total[lane] if total[lane] > 0 else np.float32(1)  # 0 without any


@kernel(types.void(_ROWS_3, _ROWS_3, _KEYS, _ROWS_3, _ROWS_3, _int, _float, _ROWS, _ROWS_2_OUT, _float[::1]))
def lay_items(user: Any, items: Any, owner: Any, history: Any, outcomes: Any, item_slot: Any,
              sharpness: Any, dense: Any, out: Any, main: Any) -> None:  # fmt: skip
    """Writes an item's own inputs into ``out`` (N, (S - K) · D + P + F + D + O): its rows, the pairwise
    products of slots, dense, and attention; the sum of products and linear terms goes into ``main`` (N,).

    ``item_slot``: the slot whose row attends over the history.
    """
    user_slots, own, dim = user.shape[1], items.shape[1], items.shape[2] - 1
    slots, length, kinds = user_slots + own, history.shape[1], outcomes.shape[2]
    rows = np.empty((slots * dim, LANES), np.float32)
    entries = np.empty((length * dim, LANES), np.float32)
    results = np.empty((length * kinds, LANES), np.float32)
    attended = np.empty((dim + kinds, LANES), np.float32)
    near = np.empty(LANES, np.float32)
    lane_owner = np.full(LANES, -1, np.int64)  # the request that a lane holds
    for first in range(0, items.shape[0], LANES):
        _of_requests(user, history, owner, first, lane_owner, rows, entries, results, outcomes)
        for lane in range(LANES):
            main[first + lane] = np.float32(0)
            for s in range(user_slots):
                main[first + lane] += user[owner[first + lane], s, dim]
        _of_items(items, first, user_slots, rows, out, main)
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
        if length > 0:
            _attend(rows, entries, results, item_slot * dim, sharpness, dim, attended)
            at += dense.shape[1]
            for lane in range(LANES):
                for c in range(dim + kinds):
                    out[first + lane, at + c] = attended[c, lane]
