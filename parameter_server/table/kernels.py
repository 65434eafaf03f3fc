"""Compiled loops of tables and routing: optimizers, random initial rows, sums of lanes, sightings."""

# N keys in a batch, D row dimension, R rows

from typing import Any, Final

import numpy as np
from numba import types

from recsys.arrays.compiled import GAMMA, kernel, mix, read_only, unit
from recsys.arrays.key_index import AHEAD, insert
from recsys.arrays.prefetch import LINE, prefetch_line

BETA_1: Final = 0.9
BETA_2: Final = 0.999
EPSILON: Final = 1e-8
_int, _float, _flag = types.int64, types.float32, types.boolean
_KEYS, _COUNTS, _ROWS = read_only(_int, 1), read_only(types.int32, 1), read_only(_float, 2)
_VECTOR = read_only(_float, 1)
_INDEX, _KEYS_OUT, _ROWS_OUT = _int[:, ::1], _int[::1], _float[:, ::1]


@kernel(types.void(types.uint64, _float, _KEYS, _KEYS, _ROWS_OUT))
def draw(seed: Any, initial: Any, keys: Any, targets: Any, out: Any) -> None:
    """Writes the initial row of ``keys[i]`` to ``out[targets[i]]``: uniform in ±initial, by hash.

    Equals ``recsys.events.hashing.uniforms``. Skips targets below 0.
    """
    scale, seed_mixed = np.float64(initial), mix(seed)
    for i in range(keys.shape[0]):
        if targets[i] < 0:
            continue
        row = out[targets[i]]
        cell = mix(np.uint64(keys[i]) ^ seed_mixed)
        for j in range(row.shape[0]):
            cell += GAMMA
            u = unit(cell)
            row[j] = np.float32((2.0 * u - 1.0) * scale)


@kernel(_flag(read_only(_float, 2), _KEYS, _int))
def prefetch_row(values: Any, slots: Any, i: Any) -> Any:
    """Prefetches the row at ``slots[i]``; returns whether there is one."""
    if i >= slots.shape[0] or slots[i] < 0:
        return False
    row = 4 * values.shape[1]
    for byte in range(0, row, LINE):
        prefetch_line(values, slots[i] * row + byte)
    prefetch_line(values, slots[i] * row + row - 1)  # rows needn't begin with a line
    return True


@kernel(_int(read_only(_float, 2), _KEYS, types.uint64, _float, _KEYS, _ROWS_OUT))
def gather(values: Any, slots: Any, seed: Any, initial: Any, keys: Any, out: Any) -> Any:
    """Copies rows by slot; an EMPTY slot gets its key's initial row. Returns the number of EMPTY slots."""
    scale, seed_mixed, dim, empty = np.float64(initial), mix(seed), out.shape[1], 0
    for i in range(slots.shape[0]):
        if slots[i] >= 0:
            slot = np.uint64(slots[i])
            for j in range(dim):
                out[i, j] = values[slot, j]
            continue
        empty += 1
        cell = mix(np.uint64(keys[i]) ^ seed_mixed)
        for j in range(dim):
            cell += GAMMA
            u = unit(cell)
            out[i, j] = np.float32((2.0 * u - 1.0) * scale)
    return empty


@kernel(_int(_ROWS, _float, _flag[::1]))
def screen(gradients: Any, bound: Any, sound: Any) -> Any:
    """Marks rows whose components are all within ±bound; returns the number of other rows."""
    bad = 0
    for i in range(gradients.shape[0]):
        good = True
        for j in range(gradients.shape[1]):
            good &= abs(gradients[i, j]) <= bound  # false for NaN
        sound[i] = good
        bad += not good
    return bad


@kernel(types.void(_ROWS_OUT, _float[::1], _KEYS_OUT, _KEYS, _ROWS, _float, _float, _int))
def adagrad(
    values: Any, accumulator: Any, used: Any, slots: Any, gradients: Any, rate: Any, epsilon: Any, now_ms: Any
) -> None:
    """Row-wise Adagrad in place: a ← a + mean(g²); w ← w - rate · g / (√a + ε).

    Skips slots below 0. The mean of squares uses four interleaved partial sums, always in the same order.
    """
    dim = gradients.shape[1]
    whole, width = dim - dim % 4, np.float32(dim)
    for i in range(slots.shape[0]):
        if prefetch_row(values, slots, i + AHEAD):
            prefetch_line(accumulator, slots[i + AHEAD] * 4)
            prefetch_line(used, slots[i + AHEAD] * 8)
        if slots[i] < 0:
            continue
        slot = np.uint64(slots[i])
        s0, s1, s2, s3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for j in range(0, whole, 4):
            s0 += gradients[i, j] * gradients[i, j]
            s1 += gradients[i, j + 1] * gradients[i, j + 1]
            s2 += gradients[i, j + 2] * gradients[i, j + 2]
            s3 += gradients[i, j + 3] * gradients[i, j + 3]
        for j in range(whole, dim):
            s0 += gradients[i, j] * gradients[i, j]
        total = accumulator[slot] + ((s0 + s1) + (s2 + s3)) / width
        accumulator[slot] = total
        used[slot] = now_ms
        factor = rate / (np.sqrt(total) + epsilon)
        for j in range(dim):
            values[slot, j] -= factor * gradients[i, j]


@kernel(types.void(_VECTOR, _VECTOR, _VECTOR, _float, _float, _float,
                   _float[::1], _float[::1], _float[::1], _float[::1]))  # fmt: skip
def adam(values: Any, averaged: Any, gradient: Any, rate: Any, unbiased: Any, keep: Any,
         m: Any, v: Any, out_values: Any, out_averaged: Any) -> None:  # fmt: skip
    """One step of ``Dense``, with m and v in place. ``rate``: learning rate / (1 - β₁ᵗ); ``unbiased``:
    1 / (1 - β₂ᵗ)."""
    one = np.float32(1)
    beta_1, beta_2, epsilon = np.float32(BETA_1), np.float32(BETA_2), np.float32(EPSILON)
    for i in range(values.shape[0]):
        m[i] = beta_1 * m[i] + (one - beta_1) * gradient[i]
        v[i] = beta_2 * v[i] + (one - beta_2) * (gradient[i] * gradient[i])
        root = np.sqrt(v[i] * unbiased)
        out_values[i] = values[i] - rate * m[i] / (root + epsilon)
        out_averaged[i] = keep * averaged[i] + (one - keep) * out_values[i]


@kernel(_int(_INDEX, _KEYS_OUT, types.int32[::1], _ROWS_OUT, _int, _KEYS, _ROWS, _COUNTS))
def add_lane(
    index: Any, sum_keys: Any, sum_counts: Any, sums: Any, rows: Any, keys: Any, gradients: Any, counts: Any
) -> Any:
    """Adds one lane's gradients to sums by key, in the order of first occurrence; returns the number of
    sums."""
    slots = np.empty(keys.shape[0], np.int64)
    rows = insert(index, sum_keys, rows, keys, slots)
    for i in range(keys.shape[0]):
        slot = np.uint64(slots[i])
        sum_counts[slot] += counts[i]
        for j in range(gradients.shape[1]):
            sums[slot, j] += gradients[i, j]
    return rows


@kernel(types.void(types.uint8[:, ::1], types.uint32[::1], _int, _int, types.uint64, _KEYS, _COUNTS,
                   _int, _int, _flag[::1]))  # fmt: skip
def count_sightings(cells: Any, added: Any, first: Any, blocks: Any, seed: Any, keys: Any,
                    counts: Any, enough_at: Any, window: Any, enough: Any) -> None:  # fmt: skip
    """Counts sightings key by key and marks the keys whose estimate reaches ``enough_at``.

    A key's block is the high half of its hash scaled to ``blocks``; ``cells`` (K, 64) holds the blocks from
    ``first`` on. The key has one cell in each of four rows of 16, and its estimate is the smallest. Only
    cells below the new estimate are raised (Estan and Varghese's conservative update). A block is halved
    after ``window`` sightings.
    """
    seed_mixed = mix(seed)
    for i in range(keys.shape[0]):
        key = np.uint64(keys[i])
        block = np.int64(((mix(key) >> np.uint64(32)) * np.uint64(blocks)) >> np.uint64(32)) - first
        block %= cells.shape[0]  # another shard's key must not write beyond
        draw = mix(key ^ seed_mixed)
        seen = np.int64(255)
        for r in range(4):
            at = 16 * r + np.int64((draw >> np.uint64(4 * r)) & np.uint64(15))
            seen = min(seen, np.int64(cells[block, at]))
        more = min(np.int64(counts[i]), enough_at)
        seen = min(seen + more, np.int64(255))
        for r in range(4):
            at = 16 * r + np.int64((draw >> np.uint64(4 * r)) & np.uint64(15))
            cells[block, at] = max(np.int64(cells[block, at]), seen)
        enough[i] = seen >= enough_at
        total = np.int64(added[block]) + more
        if total >= window:
            for c in range(cells.shape[1]):
                cells[block, c] >>= np.uint8(1)
            total >>= 1
        added[block] = total


@kernel(_int(_int, _int))
def owner_of(key: Any, shards: Any) -> Any:
    """The shard of one key, in [0, shards)."""
    return np.int64(((mix(np.uint64(key)) >> np.uint64(32)) * np.uint64(shards)) >> np.uint64(32))


@kernel(types.void(_KEYS, _int, _KEYS_OUT, _KEYS_OUT, _KEYS_OUT))
def split(keys: Any, shards: Any, owners: Any, order: Any, bounds: Any) -> None:
    """Stable counting sort of keys by shard; ``bounds`` (shards + 1,) are the positions where shards
    begin."""
    bounds[:] = 0
    for i in range(keys.shape[0]):
        owners[i] = owner_of(keys[i], shards)
        bounds[owners[i] + 1] += 1
    for s in range(shards):
        bounds[s + 1] += bounds[s]
    for i in range(keys.shape[0]):
        order[bounds[owners[i]]] = i
        bounds[owners[i]] += 1
    for s in range(shards, 0, -1):
        bounds[s] = bounds[s - 1]
    bounds[0] = 0


def warm() -> None:
    """Compiles all kernels by importing this module; a part calls it before it reports ready."""
