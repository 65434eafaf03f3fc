"""Counters of a viewer with a past: what happened before the log is added to a key when it is first needed.

Of a hundred keys of a viewer's past a request reads about ten. A row's additions are those of the events one
by one, in their order, and so are its bits. Whatever needs all rows, or their order, gets them as they'd be.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from recsys.arrays.compiled import kernel, read_only
from recsys.arrays.key_index import place_of
from recsys.features import counter_kernels
from recsys.features.counters import CounterTable, Values
from recsys.features.feature_set import Keys
from recsys.model.row_kernels import distinct

_int, _float = types.int64, types.float32
_KEYS, _VALUES, _INDEX = read_only(_int, 1), read_only(_float, 2), read_only(_int, 2)
_ROWS, _CODES, _HALF_LIVES = (
    read_only(kind, 1) for kind in (types.int32, types.int16, types.float64)
)


class PastColumns(NamedTuple):
    """All viewers' events, viewer by viewer: a group of keys, a code and a time each (N,). Keys of all
    groups, and where each begins; amounts of all codes, likewise."""

    groups_N: NDArray[np.int32]
    codes_N: NDArray[np.int16]
    times_ms_N: Keys
    keys: Keys
    begins: Keys
    amounts: Values
    parts: Keys


@kernel(_int(_INDEX, _KEYS, _int, _int, _HALF_LIVES, types.boolean[::1], _float[:, ::1], _int[::1],
             _ROWS, _CODES, _KEYS, _KEYS, _KEYS, _VALUES, _KEYS))  # fmt: skip
def fold_keys(index: Any, wanted: Any, start: Any, stop: Any, half_lives: Any, happened: Any,
              values: Any, last_ms: Any, groups: Any, codes: Any, times_ms: Any, keys: Any,
              begins: Any, amounts: Any, parts: Any) -> Any:  # fmt: skip
    """Folds some events with those wanted keys that ``index`` lacks into rows of zeros; returns the number of
    those that something happened to. A key that repeats counts once."""
    count, to = 0, np.empty(1, np.int64)
    for w in range(wanted.shape[0]):
        key, to[0] = wanted[w], w
        repeats = key == 0 or place_of(index, key) >= 0
        for before in range(w):
            repeats |= wanted[before] == key
        for n in range(start, start if repeats else stop):
            group, code = groups[n], codes[n]
            for k in range(begins[group], begins[group + 1]):
                if keys[k] != key:
                    continue
                count += not happened[w]
                happened[w] = True
                for a in range(parts[code], parts[code + 1]):
                    counter_kernels.add(values, last_ms, half_lives, to, amounts[a], times_ms[n])
                break
    return count


@kernel(_int(_ROWS, _KEYS, _KEYS, _int[::1]))
def keys_of(groups: Any, keys: Any, begins: Any, out: Any) -> Any:
    """Writes the keys of some events, each once and in order, to the front of ``out``, which has room for
    all; returns their number."""
    total = 0
    for group in groups:
        for k in range(begins[group], begins[group + 1]):
            out[total] = keys[k]
            total += 1
    cells = 4
    while cells <= 2 * total:
        cells *= 2
    every = out[:total].copy()
    return distinct(every, np.full(cells, -1, np.int32), out, np.empty(total, np.int64))


@kernel(types.void(_ROWS, _KEYS, _KEYS, _KEYS, _int[::1]))
def count_keys(groups: Any, ends: Any, keys: Any, begins: Any, counts: Any) -> None:
    """Writes the number of different keys of each viewer's events, which end at ``ends``."""
    start, events, widest = 0, 0, 0
    for stop in ends:
        events, start = max(events, stop - start), stop
    for group in range(begins.shape[0] - 1):
        widest = max(widest, begins[group + 1] - begins[group])
    start, out = 0, np.empty(events * widest, np.int64)
    for viewer in range(ends.shape[0]):
        counts[viewer] = keys_of(groups[start : ends[viewer]], keys, begins, out)
        start = ends[viewer]


class PastCounters(CounterTable):
    """An empty table that holds a past. ``rows``: where the viewer's events start and stop; ``waiting``: the
    number of their keys; ``own``: keys that all have, which are folded at once. Not for sets with operators,
    whose tables aren't only added to."""

    def __init__(
        self, kinds: int, half_lives_ms: NDArray[np.float64], past: PastColumns,
        rows: tuple[int, int], waiting: int, own: Keys,
    ) -> None:  # fmt: skip
        super().__init__(kinds, 1, half_lives_ms)
        self._past, self._rows = past, rows
        self._waiting = waiting  # keys whose past isn't folded yet
        self._checked: tuple[int, ...] = ()  # keys that were added to last
        self._is_ready = False  # whether ``arrays`` has all that will be read
        self._is_whole = False  # whether everything is folded, in its order
        self.need(own)

    def __len__(self) -> int:
        return len(self._ids) + self._waiting

    def __contains__(self, key: int) -> bool:
        self.need_all()
        return super().__contains__(key)

    @property
    def arrays(self) -> tuple[Keys, Values, Keys]:
        if not self._is_ready:
            self.need_all()
        return super().arrays

    def expect(self, keys: Keys) -> None:
        """Announces that some keys will be read, and added to: then ``arrays`` has theirs."""
        self.need(keys)
        self._is_ready = True

    def need(self, keys: Keys) -> None:
        """Folds the past of some keys."""
        if not self._waiting:
            return
        happened, last_ms = np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.int64)
        values = np.zeros((len(keys), self.columns), np.float32)
        count = fold_keys(
            self._ids.index, keys, *self._rows, self.half_lives_ms, happened, values, last_ms, *self._past
        )  # fmt: skip
        if count:
            super().set(keys[happened], values[happened], last_ms[happened])
            self._waiting -= count

    def need_all(self) -> None:
        """Folds what waits, and brings the rows into the order of their first events, once."""
        if self._is_whole:
            return
        self._is_whole = True
        past = self._past_keys()
        self.need(past)
        rows, first = self._ids.export(), self._ids.find(past)
        order = np.concatenate([first, np.setdiff1d(np.arange(len(rows["keys"])), first)])
        self._begin(len(order))
        super().set(*(rows[name][order] for name in ("keys", "values", "last_ms")))

    def add(self, keys: Iterable[int], amounts: Values, now_ms: int) -> None:
        added = tuple(keys)
        if added != self._checked and not self._is_ready:
            self.need(np.array(added, np.int64))
        self._checked, self._is_ready = added, False
        super().add(added, amounts, now_ms)

    def read(self, keys: Keys, now_ms: int) -> Values:
        is_ready = self._is_ready
        if not is_ready:
            self.expect(np.ascontiguousarray(keys).ravel())
        out = super().read(keys, now_ms)
        self._is_ready = is_ready
        return out

    def set(self, keys: Keys, values: Values, last_ms: Keys) -> None:
        self.need_all()
        super().set(keys, values, last_ms)

    def export(self, keys: Any = None) -> tuple[Keys, Values, Keys]:
        self.need_all()
        return super().export(keys)

    def keep_newest(self, limit: int) -> Keys:
        self.need_all()
        return super().keep_newest(limit)

    def _past_keys(self) -> Keys:
        """All keys of the past, in the order of their first events."""
        past, groups = self._past, self._past.groups_N[slice(*self._rows)]
        out = np.empty(int((past.begins[groups + 1] - past.begins[groups]).sum()), np.int64)
        return out[: keys_of(groups, past.keys, past.begins, out)]
