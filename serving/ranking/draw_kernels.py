"""The compiled loops of the draw: what each candidate's chance is at a rank, and one list drawn from it.

Everything is plain IEEE arithmetic in the order of the candidates, so a list can be drawn again to the bit.
Nothing is decided here: ``serving.ranking.selection`` says what it means.

Legend: N candidates, V vector, G groupings, R ranks.
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
    scores: Any, near: Any, weights: Any, left: Any, sound: Any, temperature: Any, out: Any
) -> Any:
    """Writes weight × exp((score - near) / temperature), 1 in sum, over candidates that are left and weigh
    something; 0 for the others. ``sound`` leaves out scores that are no number; without it they are all
    alike. Infinite scores share evenly. False, and all 0, where there is none."""
    best, any_open = -np.inf, False
    for i in range(scores.shape[0]):
        out[i] = 0.0
        if left[i] and weights[i] > 0.0 and not (sound and math.isnan(scores[i])):
            out[i] = weights[i]
            any_open = True
            if sound and scores[i] - near[i] > best:
                best = scores[i] - near[i]
    if not any_open:
        return False
    total = 0.0
    for i in range(scores.shape[0]):
        if out[i] > 0.0:
            if sound:
                score = scores[i] - near[i]
                if math.isinf(best):
                    out[i] = out[i] if score == best else 0.0
                else:
                    out[i] *= math.exp((score - best) / temperature)
            total += out[i]
    for i in range(scores.shape[0]):
        out[i] /= total
    return True


@kernel(_bool(_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _MASK, _NUMBERS, _OUT, _OUT))
def chances(
    scores: Any, near: Any, trust: Any, even: Any, left: Any, shares: Any, usual: Any, trial: Any
) -> Any:
    """Writes the chance of each candidate at the next rank: ``usual`` by score with a uniform share, and
    ``trial`` among those on trial. False where none of these is left. ``shares``: see ``selection``."""
    temperature, explore, heat = shares[0], shares[1], shares[4]
    sound, count = False, 0
    for i in range(scores.shape[0]):
        sound = sound or (left[i] and not math.isnan(scores[i]))
    softmax(scores, near, even, left, sound, temperature, usual)
    for i in range(scores.shape[0]):
        count += left[i] and not (sound and math.isnan(scores[i]))
    for i in range(scores.shape[0]):
        if left[i] and not (sound and math.isnan(scores[i])):
            usual[i] = (1.0 - explore) * usual[i] + explore / count
    return softmax(scores, near, trust, left, sound, temperature * heat, trial)


@kernel(_int(_OUT, _double))
def at(chance: Any, quantile: Any) -> Any:
    """The candidate at the quantile of the chances, never one that has none."""
    total, last = 0.0, -1
    for i in range(chance.shape[0]):
        total += chance[i]
    below = 0.0
    for i in range(chance.shape[0]):
        if chance[i] > 0.0:
            below += chance[i]
            last = i
            if below > quantile * total:
                return i
    return last


@kernel(types.void(_int, _VECTORS, _double, _OUT, _INTS_2, _INTS, _OUT_INT, _int, _MASK, _OUT_INT))
def take(
    position: Any,
    vectors: Any,
    diversity: Any,
    near: Any,
    groups: Any,
    caps: Any,
    taken: Any,
    count: Any,
    left: Any,
    closed: Any,
) -> Any:
    """Takes a candidate as number ``count``: closes the groups that are full with it (and counts whom that
    shut out), and notes how near to it the others are, times ``diversity``. ``vectors`` (V, N): of norm 1."""
    taken[count] = position
    left[position] = False
    for g in range(groups.shape[0]):
        group, members = groups[g, position], 0
        if group == 0:
            continue
        for t in range(count + 1):
            members += groups[g, taken[t]] == group
        if members >= caps[g]:
            for i in range(left.shape[0]):
                if left[i] and groups[g, i] == group:
                    left[i] = False
                    closed[g] += 1
    if diversity > 0.0:
        alike = np.zeros(left.shape[0])
        for v in range(vectors.shape[0]):
            own = vectors[v, position]
            for i in range(left.shape[0]):
                alike[i] += own * vectors[v, i]
        for i in range(left.shape[0]):
            near[i] = max(near[i], diversity * alike[i])


@kernel(
    _int(
        _NUMBERS, _NUMBERS, _VECTORS, _INTS_2, _INTS, _MASK, _INTS, _NUMBERS, _NUMBERS,
        _OUT_INT, _OUT, _OUT_INT, _OUT_INT,
    )
)  # fmt: skip
def draw_list(
    scores: Any,
    trust: Any,
    vectors: Any,
    groups: Any,
    caps: Any,
    left: Any,
    fixed: Any,
    draws: Any,
    shares: Any,
    positions: Any,
    propensities: Any,
    branches: Any,
    closed: Any,
) -> Any:
    """Draws a list and returns its length. ``fixed`` (R,): the position that stands at a rank, -1 for none.

    ``branches`` (R,): 0 drawn where nothing on trial was left, 1 drawn as usual, 2 by the quota, 3 fixed.
    """
    size, ranks = scores.shape[0], fixed.shape[0]
    quota, diversity = shares[2], shares[3]
    near, even = np.zeros(size), np.ones(size)
    usual, trial = np.empty(size), np.empty(size)
    taken, count, waiting = np.empty(size, np.int64), 0, 0
    for rank in range(ranks):
        if fixed[rank] >= 0:
            take(fixed[rank], vectors, diversity, near, groups, caps, taken, count, left, closed)
            count, waiting = count + 1, waiting + 1
    pinned, first = fixed.copy(), 0
    for rank in range(min(ranks, size)):
        some_left = left.any()
        if waiting and (pinned[rank] >= 0 or not some_left):
            where = rank
            if pinned[rank] < 0:
                while pinned[first] < 0:
                    first += 1
                where = first
            positions[rank], propensities[rank], branches[rank] = pinned[where], 1.0, 3
            pinned[where], waiting = -1, waiting - 1
            continue
        if not some_left:
            return rank
        on_trial = chances(scores, near, trust, even, left, shares, usual, trial)
        share = quota if on_trial else 0.0
        if draws[rank] < share:
            position, branches[rank] = at(trial, draws[rank] / share), 2
        else:
            position = at(usual, (draws[rank] - share) / (1.0 - share))
            branches[rank] = 1 if on_trial else 0
        positions[rank] = position
        propensities[rank] = share * trial[position] + (1.0 - share) * usual[position]
        take(position, vectors, diversity, near, groups, caps, taken, count, left, closed)
        count += 1
    return min(ranks, size)
