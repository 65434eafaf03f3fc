"""Compiled loops from a request's counters to its running rates, for all entities of all candidates at once.

Legend: N candidates, E entities of a candidate, S speeds (half-lives), K kinds, C = S × K counter columns, L
labels whose rates are taken.
"""

from typing import Any

import numpy as np
from numba import types

from recsys.arrays.compiled import MIX_1, kernel, mix, read_only
from recsys.arrays.key_index import place_of
from recsys.arrays.prefetch import LINE, prefetch_line
from recsys.features.counter_kernels import add_row

_int, _float = types.int64, types.float32
_INDEX, _VALUES, _TIMES = read_only(_int, 2), read_only(_float, 2), read_only(_int, 1)


@kernel(_int(_int, _int))
def crossed(left: Any, right: Any) -> Any:
    """The key of a pair, as ``recsys.events.hashing.cross``."""
    if right == 0:
        return 0
    return np.int64(mix(mix(np.uint64(left)) + np.uint64(right) * MIX_1))


@kernel(types.void(_INDEX, _VALUES, _TIMES, _INDEX, _VALUES, _TIMES, read_only(types.float64, 1),
                   read_only(_int, 2), read_only(_int, 2), _int, _float[:, :, ::1]))  # fmt: skip
def gather(index: Any, values: Any, last_ms: Any, own_index: Any, own_values: Any, own_last_ms: Any,
           half_lives: Any, items: Any, entities: Any, now_ms: Any, out: Any) -> None:  # fmt: skip
    """Adds the counters of each candidate's entities to ``out`` (N, E, C), zeros before.

    An entity is a row of ``entities`` (E, 5): whether its counters are the user's (``own_…``), whether it is
    crossed, with which key, and its first item column and their number, whose counters are summed.
    """
    # All row positions are looked up first, so that memory reads overlap instead of waiting one by one.
    size, each, row = items.shape[0], 0, 4 * values.shape[1]
    for e in range(entities.shape[0]):
        each += entities[e, 4]
    places = np.empty((size, each), np.int64)
    for n in range(size):
        at = 0
        for e in range(entities.shape[0]):
            own, is_crossed, left, start, width = entities[e]
            for c in range(start, start + width):
                key = items[n, c]
                if key != 0 and is_crossed != 0:
                    key = crossed(left, key) if left != 0 else 0
                place = -1
                if key != 0:
                    place = place_of(own_index, key) if own != 0 else place_of(index, key)
                if place >= 0 and own == 0:
                    prefetch_line(last_ms, place * 8)
                    for byte in range(0, row, LINE):
                        prefetch_line(values, place * row + byte)
                places[n, at] = place
                at += 1
    for n in range(size):
        at = 0
        for e in range(entities.shape[0]):
            for _ in range(entities[e, 4]):
                place = places[n, at]
                if place >= 0 and entities[e, 0] != 0:
                    add_row(own_values, own_last_ms, half_lives, place, now_ms, out[n, e])
                elif place >= 0:
                    add_row(values, last_ms, half_lives, place, now_ms, out[n, e])
                at += 1


@kernel(types.void(read_only(_float, 3), _TIMES, _VALUES, _float, _float, _float[:, :, ::1]))
def ratios(sums: Any, rates: Any, prior: Any, weight: Any, rare: Any, out: Any) -> None:
    """Writes the arguments of logarithms (N, E, S + S · L) from counters (N, E, C): 1 + shown, then the odds
    of each label, speed by speed.

    A rate is smoothed by ``weight`` examples of ``prior`` (S, L) and clipped to ``rare`` from 0 and 1 (a
    label may occur more than once per impression). ``rates`` (L,) are the labels' indices among the kinds.
    """
    one, speeds, labels = np.float32(1), prior.shape[0], rates.shape[0]
    kinds = sums.shape[2] // speeds
    for n in range(sums.shape[0]):
        for e in range(sums.shape[1]):
            cells, ratio = sums[n, e], out[n, e]
            for s in range(speeds):
                shown = cells[s * kinds]
                ratio[s] = one + shown
                for k in range(labels):
                    happened = cells[s * kinds + rates[k]]
                    rate = (happened + weight * prior[s, k]) / (shown + weight)
                    rate = min(max(rate, rare), one - rare)
                    ratio[speeds + s * labels + k] = rate / (one - rate)


@kernel(types.void(read_only(_float, 3), read_only(_float, 3), _int, _VALUES, _float, _float, _float,
                   _TIMES, _float[:, ::1]))  # fmt: skip
def lay(logs: Any, sums: Any, watch: Any, prior_odds: Any, mean_watch: Any, weight: Any, bound: Any,
        places: Any, dense: Any) -> None:  # fmt: skip
    """Writes rates into ``dense`` (N, at least E · (1 + S + S · L)), each entity to its place: log counts /
    3, log odds minus ``prior_odds`` (S, L), and the smoothed mean log watch time at the slowest speed minus
    ``mean_watch``, clipped to ±``bound``. ``logs`` (N or 1, E, S + S · L) and ``sums`` with one row apply to
    all items."""
    speeds, labels, last = prior_odds.shape[0], prior_odds.shape[1], logs.shape[2]
    slowest = sums.shape[2] - sums.shape[2] // speeds
    for n in range(dense.shape[0]):
        m = n if logs.shape[0] > 1 else 0
        for e in range(logs.shape[1]):
            own, at = logs[m, e], places[e] * (last + 1)
            out = dense[n, at : at + last + 1]
            for s in range(speeds):
                out[s] = own[s] / np.float32(3)
                for k in range(labels):
                    c = speeds + s * labels + k
                    out[c] = own[c] - prior_odds[s, k]
            slow = sums[m, e, slowest:]
            mean = (slow[watch] + weight * mean_watch) / (slow[0] + weight) - mean_watch
            out[last] = min(max(mean, -bound), bound)
