"""Which items engage most lately: an order that stays right while time passes, without touching it.

With counts that halve every h, count · 2^(-(now - last) / h) of two items compare at any ``now`` as
log2(count) + last / h does: so a value is set when an item's counters change and never again.
"""

import numpy as np
from numpy.typing import NDArray

from recsys.catalogue import Catalogue
from recsys.counters import HALF_LIVES_MS
from recsys.features import FeatureSet

Indices = NDArray[np.int64]
_TOP = 4096
_REFRESH_MS = 1000


class Popularity:
    """Values by catalogue index, and the best of them."""

    def __init__(self, features: FeatureSet, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._main = features.kinds.index(
            features.main_labels[0]
        )  # of the fast counters, which come first
        self._values = np.full(1024, -np.inf, np.float64)
        self._top: Indices = np.empty(0, np.int64)
        self._stale, self._made_ms = True, 0

    @property
    def values(self) -> NDArray[np.float64]:
        """One value per item of the catalogue, -inf where nothing has happened yet."""
        self._grow()
        return self._values[: len(self._catalogue)]

    def update(self, keys: Indices, counters: NDArray[np.float32], last_ms: Indices) -> None:
        """Takes the counters (n, C) of entities that changed; those that aren't items are passed over."""
        self._grow()
        found = [self._catalogue.index_of_key(key) for key in keys.tolist()]
        for place, index in enumerate(found):
            if index is not None:
                count = float(counters[place, self._main])
                value = np.log2(count + 1e-6) + last_ms[place] / HALF_LIVES_MS[0]
                self._values[index] = value if count > 0 else -np.inf
                self._stale = True

    def top(self, now_ms: int) -> Indices:
        """The most popular items, best first; made anew at most once a second."""
        if (self._stale and abs(now_ms - self._made_ms) >= _REFRESH_MS) or not len(self._top):
            values = self.values
            count = min(_TOP, len(values))
            if count:
                best = np.argpartition(-values, count - 1)[:count]
                self._top = best[np.argsort(-values[best], kind="stable")]
            self._stale, self._made_ms = False, now_ms
        return self._top

    def _grow(self) -> None:
        while len(self._values) < len(self._catalogue):
            self._values = np.concatenate([self._values, np.full_like(self._values, -np.inf)])
