"""Compiled loops of the draw: the probability of each candidate at a rank, and one list drawn from these.

Plain IEEE arithmetic in the order of the candidates, so a list can be drawn again to the bit. The meaning of
the numbers is documented in ``serving.selection.sampling``.

Legend: N candidates, V vector, G groupings, R ranks. ``params``: temperature, explore, quota, diversity,
heat.
"""

import math
from typing import Any

import numpy as np
from numba import types

from recsys.arrays.compiled import kernel, read_only

_int, _bool, _double, _float = types.int64, types.boolean, types.float64, types.float32
_INTS, _INTS_2, _NUMBERS = read_only(_int, 1), read_only(_int, 2), read_only(_double, 1)
_VECTORS = read_only(_float, 2)
_MASK, _OUT, _OUT_INT = _bool[::1], _double[::1], _int[::1]


@kernel(_bool(_NUMBERS, _NUMBERS, _NUMBERS, _MASK, _bool, _double, _OUT))
def softmax(
    scores: Any, penalty: Any, weights: Any, left: Any, numbers: Any, temperature: Any, out: Any
) -> Any:
    """Writes weight × exp((score - penalty) / temperature), normalised over remaining candidates with a
    positive weight; 0 for the others. ``numbers`` leaves out NaN scores; without it all scores are alike.
    Infinite scores share evenly. Returns False, with zeros, where no candidate is eligible."""
    best, any_open = -np.inf, False
    for i in range(scores.shape[0]):
        out[i] = 0.0
        if left[i] and weights[i] > 0.0 and not (numbers and math.isnan(scores[i])):
            out[i] = weights[i]
            any_open = True
            if numbers and scores[i] - penalty[i] > best:
                best = scores[i] - penalty[i]
    if not any_open:
        return False
    total = 0.0
    for i in range(scores.shape[0]):
        if out[i] > 0.0:
            if numbers:
                score = scores[i] - penalty[i]
                if math.isinf(best):
                    out[i] = out[i] if score == best else 0.0
                else:
                    out[i] *= math.exp((score - best) / temperature)
            total += out[i]
    for i in range(scores.shape[0]):
        out[i] /= total
    return True


@kernel(_bool(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _MASK, _NUMBERS, _OUT, _OUT))
def rank_probabilities(
    scores: Any, penalty: Any, trust: Any, even: Any, left: Any, params: Any, usual: Any, trial: Any
) -> Any:
    """Writes each candidate's probability at the next rank: ``usual`` by score with a uniform share, and
    ``trial`` among trial items. Returns False where no trial item is left."""
    temperature, explore, heat = params[0], params[1], params[4]
    numbers, count = False, 0
    for i in range(scores.shape[0]):
        numbers = numbers or (left[i] and not math.isnan(scores[i]))
    softmax(scores, penalty, even, left, numbers, temperature, usual)
    for i in range(scores.shape[0]):
        count += left[i] and not (numbers and math.isnan(scores[i]))
    for i in range(scores.shape[0]):
        if left[i] and not (numbers and math.isnan(scores[i])):
            usual[i] = (1.0 - explore) * usual[i] + explore / count
    return softmax(scores, penalty, trust, left, numbers, temperature * heat, trial)


@kernel(_int(_OUT, _double))
def at_quantile(probabilities: Any, quantile: Any) -> Any:
    """Position at a quantile of the probabilities, never one with probability 0."""
    total, last = 0.0, -1
    for i in range(probabilities.shape[0]):
        total += probabilities[i]
    below = 0.0
    for i in range(probabilities.shape[0]):
        if probabilities[i] > 0.0:
            below += probabilities[i]
            last = i
            if below > quantile * total:
                return i
    return last


@kernel(types.void(_int, _VECTORS, _double, _OUT, _INTS_2, _INTS, _OUT_INT, _int, _MASK, _OUT_INT))
def place(
    position: Any, vectors: Any, diversity: Any, penalty: Any, groups: Any, caps: Any, placed: Any,
    count: Any, left: Any, closed: Any,
) -> Any:  # fmt: skip
    """Places a candidate as number ``count``: closes the groups that it fills, counts the candidates that
    these exclude, and raises ``penalty`` to ``diversity`` × cosine. ``vectors`` (V, N) have norm 1."""
    placed[count] = position
    left[position] = False
    for g in range(groups.shape[0]):
        group, members = groups[g, position], 0
        if group == 0:
            continue
        for t in range(count + 1):
            members += groups[g, placed[t]] == group
        if members >= caps[g]:
            for i in range(left.shape[0]):
                if left[i] and groups[g, i] == group:
                    left[i] = False
                    closed[g] += 1
    if diversity > 0.0:
        cosines = np.zeros(left.shape[0])
        for v in range(vectors.shape[0]):
            own = vectors[v, position]
            for i in range(left.shape[0]):
                cosines[i] += own * vectors[v, i]
        for i in range(left.shape[0]):
            penalty[i] = max(penalty[i], diversity * cosines[i])


@kernel(types.void(_MASK, _INTS_2, _INTS, _INTS, _int, _MASK))
def may_follow(left: Any, groups: Any, runs: Any, positions: Any, rank: Any, out: Any) -> Any:
    """Writes which remaining candidates may come at a rank: none of a group that all of the ``runs`` items
    above are of (0: no such limit). All of them may where no other is left."""
    out[:] = left
    for g in range(groups.shape[0]):
        if rank < runs[g] or runs[g] == 0:
            continue
        group = groups[g, positions[rank - 1]]
        full = group != 0
        for r in range(rank - runs[g], rank):
            full = full and groups[g, positions[r]] == group
        if full:
            for i in range(out.shape[0]):
                out[i] = out[i] and groups[g, i] != group
    if not out.any():
        out[:] = left


@kernel(
    _int(
        _NUMBERS, _NUMBERS, _VECTORS, _INTS_2, _INTS, _INTS, _MASK, _INTS, _NUMBERS, _NUMBERS,
        _OUT_INT, _OUT, _OUT_INT, _OUT_INT,
    )
)  # fmt: skip
def draw_list(
    scores: Any, trust: Any, vectors: Any, groups: Any, caps: Any, runs: Any, left: Any, pinned: Any,
    draws: Any, params: Any, positions: Any, propensities: Any, branches: Any, closed: Any,
) -> Any:  # fmt: skip
    """Draws a list and returns its length. ``pinned`` (R,): the position pinned to a rank, -1 for none.

    ``branches`` (R,): 0 drawn without trial items left, 1 drawn as usual, 2 by the quota, 3 pinned.
    """
    size, ranks = scores.shape[0], pinned.shape[0]
    quota, diversity = params[2], params[3]
    penalty, even = np.zeros(size), np.ones(size)
    usual, trial, following = np.empty(size), np.empty(size), np.empty(size, np.bool_)
    placed, count, waiting = np.empty(size, np.int64), 0, 0
    for rank in range(ranks):
        position = pinned[rank]
        if position >= 0:
            place(position, vectors, diversity, penalty, groups, caps, placed, count, left, closed)
            count, waiting = count + 1, waiting + 1
    pins, first = pinned.copy(), 0
    for rank in range(min(ranks, size)):
        any_left = left.any()
        if waiting and (pins[rank] >= 0 or not any_left):
            source = rank
            if pins[rank] < 0:
                while pins[first] < 0:
                    first += 1
                source = first
            positions[rank], propensities[rank], branches[rank] = pins[source], 1.0, 3
            pins[source], waiting = -1, waiting - 1
            continue
        if not any_left:
            return rank
        may_follow(left, groups, runs, positions, rank, following)
        on_trial = rank_probabilities(scores, penalty, trust, even, following, params, usual, trial)
        share = quota if on_trial else 0.0
        if draws[rank] < share:
            position, branches[rank] = at_quantile(trial, draws[rank] / share), 2
        else:
            position = at_quantile(usual, (draws[rank] - share) / (1.0 - share))
            branches[rank] = 1 if on_trial else 0
        positions[rank] = position
        propensities[rank] = share * trial[position] + (1.0 - share) * usual[position]
        place(position, vectors, diversity, penalty, groups, caps, placed, count, left, closed)
        count += 1
    return min(ranks, size)
