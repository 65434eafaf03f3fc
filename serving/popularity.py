"""Which items engage most lately: an order that stays right while time passes, without touching it.

With counts that halve every h, count · 2^(-(now - last) / h) of two items compare at any ``now`` as
log2(count) + last / h does: so a value is set when an item's counters change and never again.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue
from recsys.counters import HALF_LIVES_MS, Counters
from recsys.features import FeatureSet

Indices = NDArray[np.int64]
_TOP: Final = 4096
_REFRESH_MS: Final = 1000


class Popularity:
    """Values by catalogue index, and the best of them.

    The best are found anew once in a second of event time, when counters change: never because of who asks
    when, so that replicas that folded the same records agree.
    """

    def __init__(self, features: FeatureSet, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # Of the fast counters, which come first.
        self._main = features.kinds.index(features.main_labels[0])
        self._values = np.full(1024, -np.inf, np.float64)
        self._top: Indices = np.empty(0, np.int64)
        self._newest_ms = -_REFRESH_MS

    @property
    def values(self) -> NDArray[np.float64]:
        """One value per item of the catalogue, -inf where nothing has happened yet."""
        self._grow()
        return self._values[: len(self._catalogue)]

    def update(self, keys: Indices, counters: NDArray[np.float32], last_ms: Indices) -> None:
        """Takes the counters (n, C) of entities that changed; those that aren't items are passed over."""
        if not len(keys):
            return
        self._grow()
        found = [self._catalogue.index_of_key(key) for key in keys.tolist()]
        for place, index in enumerate(found):
            if index is not None:
                self._set(index, float(counters[place, self._main]), int(last_ms[place]))
        before_ms, self._newest_ms = self._newest_ms, max(self._newest_ms, int(last_ms.max()))
        if before_ms // _REFRESH_MS != self._newest_ms // _REFRESH_MS:
            self._top = self._best()

    def enter(self, index: int, counters: Counters) -> None:
        """An item is new: what was told of it before counts from now on, so that it doesn't matter whether
        items or counters are read first."""
        key = int(self._catalogue.keys[index, 0])
        if key in counters:
            _, values, last_ms = counters.export([key])
            self._grow()
            self._set(index, float(values[0, self._main]), int(last_ms[0]))

    def _set(self, index: int, count: float, last_ms: int) -> None:
        value = np.log2(count + 1e-6) + last_ms / HALF_LIVES_MS[0]
        self._values[index] = value if count > 0 else -np.inf

    @property
    def top(self) -> Indices:
        """The most popular items, best first: only those that somebody engaged with."""
        return self._top

    def _best(self) -> Indices:
        values = self.values
        there = np.flatnonzero(values > -np.inf)
        if len(there) > _TOP:
            there = there[np.argpartition(-values[there], _TOP)[:_TOP]]
        best: Indices = there[np.argsort(-values[there], kind="stable")]
        return best

    def _grow(self) -> None:
        while len(self._values) < len(self._catalogue):
            self._values = np.concatenate([self._values, np.full_like(self._values, -np.inf)])
