"""Compiled loops from a request's counters to its running rates, for all entities of all candidates at once.

Legend: N candidates, I item columns, E entities of a candidate, C counter columns (2 speeds × K kinds),
G groups, L labels whose rates are taken.
"""

from typing import Any

import numpy as np
from numba import types

from recsys.arrays.compiled import MIX_1, kernel, mix, read_only
from recsys.arrays.key_index import place_of
from recsys.arrays.prefetch import LINE, prefetch_line
from recsys.features.counter_kernels import add_aged, add_row

_int, _float = types.int64, types.float32
_INDEX, _VALUES, _TIMES = read_only(_int, 2), read_only(_float, 2), read_only(_int, 1)


@kernel(_int(_int, _int))
def crossed(left: Any, right: Any) -> Any:
    """The key of a pair, as ``recsys.events.hashing.cross``."""
    if right == 0:
        return 0
    return np.int64(mix(mix(np.uint64(left)) + np.uint64(right) * MIX_1))


@kernel(types.void(_INDEX, _VALUES, _TIMES, _INDEX, _VALUES, _TIMES, read_only(_int, 2), _int,
                   _TIMES, _int, _int, _int, _float[:, :, ::1]))  # fmt: skip
def gather(index: Any, values: Any, last_ms: Any, own_index: Any, own_values: Any, own_last_ms: Any,
           items: Any, duration: Any, groups: Any, width: Any, context: Any, now_ms: Any,
           out: Any) -> None:  # fmt: skip
    """Adds the counters of each candidate's entities to ``out`` (N, 5 + 2 · G, C), zeros before.

    For all viewers (``index``, ``values``, ``last_ms``): the item, and the item and its duration with the
    context. For the user (``own_…``): the item and its duration. Then for each group, over ``width`` columns
    from ``groups[g]`` on: the sum for all viewers and for the user. ``duration`` is the duration's column.
    """
    # All row positions are looked up first, so that memory reads overlap instead of waiting one by one.
    size, each = items.shape[0], 3 + width * groups.shape[0]
    places, row = np.empty((size, each), np.int64), 4 * values.shape[1]
    for n in range(size):
        keys, at = items[n], places[n]
        at[0] = place_of(index, keys[0])
        at[1] = place_of(index, crossed(context, keys[0]))
        at[2] = place_of(index, crossed(context, keys[duration])) if keys[duration] != 0 else -1
        for g in range(groups.shape[0]):
            for c in range(width):
                key = keys[groups[g] + c]
                at[3 + g * width + c] = place_of(index, key) if key != 0 else -1
        for e in range(each):
            if at[e] >= 0:
                prefetch_line(last_ms, at[e] * 8)
                for byte in range(0, row, LINE):
                    prefetch_line(values, at[e] * row + byte)
    for n in range(size):
        keys, sums = items[n], out[n]
        for e in range(3):
            if places[n, e] >= 0:
                add_row(values, last_ms, places[n, e], now_ms, sums[e])
        add_aged(own_index, own_values, own_last_ms, keys[0], now_ms, sums[3])
        add_aged(own_index, own_values, own_last_ms, keys[duration], now_ms, sums[4])
        for g in range(groups.shape[0]):
            for c in range(width):
                place = places[n, 3 + g * width + c]
                if place >= 0:
                    add_row(values, last_ms, place, now_ms, sums[5 + 2 * g])
                key = keys[groups[g] + c]
                add_aged(own_index, own_values, own_last_ms, key, now_ms, sums[6 + 2 * g])


@kernel(types.void(read_only(_float, 3), _TIMES, _VALUES, _float, _float, _float[:, :, ::1]))
def ratios(sums: Any, rates: Any, prior: Any, weight: Any, rare: Any, out: Any) -> None:
    """Writes the arguments of logarithms (N, E, 2 + 2 · L) from counters (N, E, C): 1 + shown, then the odds
    of each label, fast ones first.

    A rate is smoothed by ``weight`` examples of ``prior`` (2, L) and clipped to ``rare`` from 0 and 1 (a
    label may occur more than once per impression). ``rates`` (L,) are the labels' indices among the kinds.
    """
    one, kinds, labels = np.float32(1), sums.shape[2] // 2, rates.shape[0]
    for n in range(sums.shape[0]):
        for e in range(sums.shape[1]):
            cells, ratio = sums[n, e], out[n, e]
            for s in range(2):
                shown = cells[s * kinds]
                ratio[s] = one + shown
                for k in range(labels):
                    happened = cells[s * kinds + rates[k]]
                    rate = (happened + weight * prior[s, k]) / (shown + weight)
                    rate = min(max(rate, rare), one - rare)
                    ratio[2 + s * labels + k] = rate / (one - rate)


@kernel(types.void(read_only(_float, 3), read_only(_float, 3), _int, _VALUES, _float, _float, _float,
                   _TIMES, _float[:, ::1]))  # fmt: skip
def lay(logs: Any, sums: Any, watch: Any, prior_odds: Any, mean_watch: Any, weight: Any, bound: Any,
        places: Any, dense: Any) -> None:  # fmt: skip
    """Writes rates into ``dense`` (N, at least E · (3 + 2 · L)), each entity to its place: log counts / 3,
    log odds minus ``prior_odds`` (2, L), and the smoothed mean log watch time minus ``mean_watch``, clipped
    to ±``bound``. ``logs`` (N or 1, E, 2 + 2 · L) and ``sums`` with one row apply to all items."""
    labels, kinds, last = prior_odds.shape[1], sums.shape[2] // 2, logs.shape[2]
    for n in range(dense.shape[0]):
        m = n if logs.shape[0] > 1 else 0
        for e in range(logs.shape[1]):
            own, at = logs[m, e], places[e] * (last + 1)
            out = dense[n, at : at + last + 1]
            out[0], out[1] = own[0] / np.float32(3), own[1] / np.float32(3)
            for s in range(2):
                for k in range(labels):
                    out[2 + s * labels + k] = own[2 + s * labels + k] - prior_odds[s, k]
            slow = sums[m, e, kinds:]
            mean = (slow[watch] + weight * mean_watch) / (slow[0] + weight) - mean_watch
            out[last] = min(max(mean, -bound), bound)
