"""Popularity of items by recent engagement, in an order that stays right as time passes, without updates.

With counts that halve every h, count · 2^(-(now - last) / h) of two items compare at any ``now`` like
log2(count) + last / h: so a value is set only when an item's counters change.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.features.catalogue import Catalogue
from recsys.features.counters import CounterTable
from recsys.features.feature_set import FeatureSet

Indices = NDArray[np.int64]
_TOP: Final = 4096
_REFRESH_MS: Final = 1000
_FEW: Final = 256
_ROUNDING: Final = 1e-4  # a count that only decayed keeps its value, up to float32's last bits


class Popularity:
    """Values by catalogue index, and the most popular items.

    These are determined anew once per second of event time, of few items at once, when counters change, and
    never by requests: so replicas that folded the same records agree.
    """

    def __init__(self, features: FeatureSet, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # A fast counter: these come first.
        self._half_life_ms = features.half_lives_ms[0]
        self._main = features.kinds.index(features.main_labels[0])
        self._shown_column = features.slow_counter("shown")
        self._values = np.full(1024, -np.inf, np.float64)
        self._shown = np.zeros(1024)
        self.top: Indices = np.empty(0, np.int64)  # items with engagement, most popular first
        self._moved: list[Indices] = []  # since ``top`` was determined
        self._floor = np.inf  # value of the last item of ``top``
        self._fell = False  # whether an item of ``top`` has lost value since then
        self._newest_ms = -_REFRESH_MS

    @property
    def values(self) -> NDArray[np.float64]:
        """One value per item of the catalogue, -inf without engagement."""
        self.reserve(0)
        return self._values[: len(self._catalogue)]

    @property
    def shown(self) -> NDArray[np.float64]:
        """Showings of each item of the catalogue, by its slow counter at its last change."""
        self.reserve(0)
        return self._shown[: len(self._catalogue)]

    def update(self, keys: Indices, counters: NDArray[np.float32], last_ms: Indices) -> None:
        """Applies changed counters (n, C) of entities; ignores entities that aren't items."""
        if not len(keys):
            return
        indices = self._catalogue.indices_of_keys(keys)
        items = np.flatnonzero(indices >= 0)
        self._set(indices[items], counters[items], last_ms[items])
        before_ms, self._newest_ms = self._newest_ms, max(self._newest_ms, int(last_ms.max()))
        is_later = before_ms // _REFRESH_MS != self._newest_ms // _REFRESH_MS
        if is_later or len(self.top) + sum(map(len, self._moved)) <= _FEW:
            self.top = self._most_popular()
            self._floor = self._values[self.top[-1]] if len(self.top) else np.inf
            self._fell, self._moved = False, []

    def enter(self, index: int, counters: CounterTable) -> None:
        """Applies earlier counters of a new item: either may be read first."""
        if len(counters):
            _, values, last_ms = counters.export([int(self._catalogue.keys[index, 0])])
            if len(values):
                self._set(np.array([index]), values, last_ms)

    def _set(self, items: Indices, counters: NDArray[np.float32], last_ms: Indices) -> None:
        self.reserve(0)
        count = counters[:, self._main].astype(np.float64)
        values = np.log2(count + 1e-6) + last_ms / self._half_life_ms
        values[count <= 0] = -np.inf
        # A count that shrank may admit an item from outside: only then are all items compared.
        before = self._values[items]
        fell = (before >= self._floor) & (values < before - _ROUNDING)
        self._fell = self._fell or bool(fell.any())
        self._values[items] = values
        self._moved.append(items)
        self._shown[items] = counters[:, self._shown_column]

    def _most_popular(self) -> Indices:
        """The best by (value, index): of ``top`` and the changed items, as values only grow."""
        if self._fell:
            return self.best(np.arange(len(self.values)))
        has_moved = np.zeros(len(self._values), np.bool_)
        has_moved[np.concatenate([self.top[:0], *self._moved])] = True
        moved = self.best(np.flatnonzero(has_moved))
        if len(moved) > _FEW:
            has_moved[self.top] = True
            return self.best(np.flatnonzero(has_moved))
        stayed = self.top[~has_moved[self.top]]
        return _merged(stayed, moved, self._values)[:_TOP]

    def best(self, pool: Indices) -> Indices:
        """The most popular of some items, given in ascending order, without those nobody engaged with."""
        pool = pool[self.values[pool] > -np.inf]
        if len(pool) > _TOP:
            values = self.values[pool]
            pool = pool[values >= np.partition(values, -_TOP)[-_TOP]]
        best: Indices = pool[np.argsort(-self.values[pool], kind="stable")][:_TOP]
        return best

    def reserve(self, more: int) -> None:
        """Makes room for more items. Another thread may read meanwhile, and none may write."""
        while len(self._values) < len(self._catalogue) + more:
            self._values = np.concatenate([self._values, np.full_like(self._values, -np.inf)])
            self._shown = np.concatenate([self._shown, np.zeros_like(self._shown)])


def _merged(stayed: Indices, moved: Indices, values: NDArray[np.float64]) -> Indices:
    """Both in one order: by falling value, equal ones by index, as each of them is."""
    falling = -values[stayed]
    places, ends = (np.searchsorted(falling, -values[moved], side) for side in ("left", "right"))
    for n in np.flatnonzero(ends > places):  # of equal values
        places[n] += np.searchsorted(stayed[places[n] : ends[n]], moved[n])
    return np.insert(stayed, places, moved)
