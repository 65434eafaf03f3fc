"""Compiled loops of running counters: many keys at once, each decayed to the requested time.

Legend: N keys, R counter rows, S speeds (half-lives), K kinds, C = S × K columns, speed by speed.
"""

from typing import Any

import numpy as np
from numba import types

from recsys.arrays.compiled import kernel, mix, read_only, unit
from recsys.arrays.key_index import insert, place_of

_int, _float = types.int64, types.float32
_KEYS, _INDEX, _HALF_LIVES = read_only(_int, 1), read_only(_int, 2), read_only(types.float64, 1)
_VALUES, _TIMES, _AMOUNTS = read_only(_float, 2), read_only(_int, 1), read_only(_float, 1)

_FREQUENT = 65_536  # shown so often, a row decays by less than float32 can tell between two events


@kernel(types.void(_VALUES, _TIMES, _HALF_LIVES, _int, _int, _float[::1]))
def add_row(values: Any, last_ms: Any, half_lives: Any, row: Any, now_ms: Any, out: Any) -> None:
    """Adds one row's counters, decayed to ``now_ms``, to ``out`` (C,). ``half_lives`` in milliseconds
    (S,)."""
    age, kinds = max(now_ms - last_ms[row], 0), values.shape[1] // half_lives.shape[0]
    for s in range(half_lives.shape[0]):
        left = np.float32(np.exp2(-age / half_lives[s]))
        for c in range(s * kinds, (s + 1) * kinds):
            out[c] += values[row, c] * left


@kernel(types.void(_INDEX, _VALUES, _TIMES, _HALF_LIVES, _KEYS, _int, _float[:, ::1]))
def read(index: Any, values: Any, last_ms: Any, half_lives: Any, keys: Any, now_ms: Any, out: Any) -> None:
    """Adds each key's counters as of ``now_ms`` to its row of ``out`` (N, C); nothing for 0 and unknown
    keys."""
    for i in range(keys.shape[0]):
        row = place_of(index, keys[i]) if keys[i] != 0 else -1
        if row >= 0:
            add_row(values, last_ms, half_lives, row, now_ms, out[i])


@kernel(_float(types.float64, types.uint64))
def _rounded(exact: Any, seed: Any) -> Any:
    """Rounds a number at random to one of the two float32 next to it, so that it is the mean (stochastic
    rounding, Connolly, Higham and Mary 2021)."""
    if exact == 0.0:
        return np.float32(0.0)
    step = np.exp2(np.floor(np.log2(abs(exact))) - 23.0)
    return np.float32(np.floor(exact / step + unit(seed ^ np.uint64(np.int64(exact)))) * step)


@kernel(types.void(_float[:, ::1], _int[::1], _HALF_LIVES, _KEYS, _AMOUNTS, _int))
def add(values: Any, last_ms: Any, half_lives: Any, rows: Any, amounts: Any, now_ms: Any) -> None:
    """Adds ``amounts`` (K,) to rows. An event in order decays the row to its time, a late one is decayed.

    float32 rounds the decay of some ms to 1, and 1 more than 2²⁴ to 2²⁴: frequent rows are rounded up or down
    at random (``_rounded``), so that their mean is right."""
    kinds = amounts.shape[0]
    for i in range(rows.shape[0]):
        row, age = rows[i], now_ms - last_ms[rows[i]]
        frequent = values[row, values.shape[1] - kinds] > _FREQUENT
        for s in range(half_lives.shape[0]):
            left = np.exp2(-abs(age) / half_lives[s])
            own, of_row = (left, 1.0) if age < 0 else (1.0, left)
            for k in range(kinds):
                c = s * kinds + k
                if frequent:
                    exact = values[row, c] * of_row + own * amounts[k]
                    values[row, c] = _rounded(exact, mix(np.uint64(now_ms)) ^ np.uint64(c))
                elif age < 0:
                    values[row, c] += np.float32(left) * amounts[k]
                else:
                    values[row, c] = values[row, c] * np.float32(left) + amounts[k]
        if age > 0:
            last_ms[row] = now_ms


@kernel(_int(_int[:, ::1], _int[::1], _int, _KEYS, _float[:, ::1], _int[::1], _HALF_LIVES, _AMOUNTS, _int))
def add_keys(index: Any, placed: Any, count: Any, keys: Any, values: Any, last_ms: Any,
             half_lives: Any, amounts: Any, now_ms: Any) -> Any:  # fmt: skip
    """``add`` to the rows of keys; new ones are inserted. Returns the number of keys in the table."""
    rows = np.empty(keys.shape[0], np.int64)
    count = insert(index, placed, count, keys, rows)
    add(values, last_ms, half_lives, rows, amounts, now_ms)
    return count


@kernel(types.void(_float[:, ::1], _int[::1], _int[::1], _int, _float, _int, _int[::1]))
def touch(values: Any, last_ms: Any, rows: Any, size: Any, value: Any, now_ms: Any, before: Any) -> None:
    """Sets the time of rows to that of an event, and their first number to its value; writes the time
    ``before``, -1 for rows from ``size`` on, which are new. A late event changes nothing; of two at one time
    the larger value stays, whatever their order."""
    for i in range(rows.shape[0]):
        row = rows[i]
        before[i] = last_ms[row] if row < size else -1
        if now_ms > before[i]:
            last_ms[row], values[row, 0] = now_ms, value
        elif now_ms == before[i]:
            values[row, 0] = max(values[row, 0], value)


@kernel(types.void(_float[:, ::1], _int[::1], _HALF_LIVES, _KEYS, _int, _KEYS, _float, _int))
def add_distinct(
    values: Any, last_ms: Any, half_lives: Any, rows: Any, kind: Any, before: Any, sign: Any, now_ms: Any
) -> None:
    """Adds to one kind of counter what has faded of a member since the time ``before`` (-1: never), so that
    each member counts 2^(-age / half-life) since its newest event."""
    kinds = values.shape[1] // half_lives.shape[0]
    for i in range(rows.shape[0]):
        row, age = rows[i], now_ms - last_ms[rows[i]]
        for s in range(half_lives.shape[0]):
            left = np.float32(np.exp2(-abs(age) / half_lives[s]))
            faded = sign
            if before[i] >= 0:
                since = max(now_ms - before[i], 0)
                faded = sign * np.float32(1 - np.exp2(-since / half_lives[s]))
            if age < 0:
                faded *= left
            else:
                for c in range(s * kinds, (s + 1) * kinds):
                    values[row, c] *= left
            values[row, s * kinds + kind] += faded
        if age > 0:
            last_ms[row] = now_ms
