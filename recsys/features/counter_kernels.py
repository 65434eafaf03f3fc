"""Compiled loops of running counters: many keys at once, each decayed to the requested time.

Legend: N keys, R counter rows, C columns = 2 speeds × K kinds, fast ones first, H cells of an index.
"""

from typing import Any, Final

import numpy as np
from numba import types

from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.key_index import place_of

# Half-lives in milliseconds: the fast counters follow the hour, the slow ones the week.
FAST_MS: Final = 6 * 3_600_000.0
SLOW_MS: Final = 14 * 24 * 3_600_000.0

_int, _float = types.int64, types.float32
_KEYS, _INDEX = read_only(_int, 1), read_only(_int, 2)
_VALUES, _TIMES, _AMOUNTS = read_only(_float, 2), read_only(_int, 1), read_only(_float, 1)


@kernel(types.void(_VALUES, _TIMES, _int, _int, _float[::1]))
def add_row(values: Any, last_ms: Any, row: Any, now_ms: Any, out: Any) -> None:
    """Adds one row's counters, decayed to ``now_ms``, to ``out`` (C,)."""
    age, kinds = max(now_ms - last_ms[row], 0), values.shape[1] // 2
    fast = np.float32(np.exp2(-age / FAST_MS))
    slow = np.float32(np.exp2(-age / SLOW_MS))
    for c in range(kinds):
        out[c] += values[row, c] * fast
    for c in range(kinds, 2 * kinds):
        out[c] += values[row, c] * slow


@kernel(types.void(_INDEX, _VALUES, _TIMES, _int, _int, _float[::1]))
def add_aged(index: Any, values: Any, last_ms: Any, key: Any, now_ms: Any, out: Any) -> None:
    """Adds one key's counters to ``out`` (C,); nothing for 0 and unknown keys."""
    row = place_of(index, key) if key != 0 else -1
    if row >= 0:
        add_row(values, last_ms, row, now_ms, out)


@kernel(types.void(_INDEX, _VALUES, _TIMES, _KEYS, _int, _float[:, ::1]))
def read(index: Any, values: Any, last_ms: Any, keys: Any, now_ms: Any, out: Any) -> None:
    """Adds each key's counters as of ``now_ms`` to its row of ``out`` (N, C)."""
    for i in range(keys.shape[0]):
        add_aged(index, values, last_ms, keys[i], now_ms, out[i])


@kernel(types.void(_float[:, ::1], _int[::1], _KEYS, _AMOUNTS, _int))
def add(values: Any, last_ms: Any, rows: Any, amounts: Any, now_ms: Any) -> None:
    """Adds ``amounts`` (K,) to rows. An event in order decays the row to its own time; a late one is decayed
    to the row's time."""
    kinds = amounts.shape[0]
    for i in range(rows.shape[0]):
        row, age = rows[i], now_ms - last_ms[rows[i]]
        fast = np.float32(np.exp2(-abs(age) / FAST_MS))
        slow = np.float32(np.exp2(-abs(age) / SLOW_MS))
        for k in range(kinds):
            if age < 0:
                values[row, k] += fast * amounts[k]
                values[row, kinds + k] += slow * amounts[k]
            else:
                values[row, k] = values[row, k] * fast + amounts[k]
                values[row, kinds + k] = values[row, kinds + k] * slow + amounts[k]
        if age > 0:
            last_ms[row] = now_ms
