"""Which items engage most lately: an order that stays right while time passes, without touching it.

With counts that halve every h, count · 2^(-(now - last) / h) of two items compare at any ``now`` as
log2(count) + last / h does: so a value is set when an item's counters change and never again.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.features.catalogue import Catalogue
from recsys.features.counters import HALF_LIVES_MS, Counters
from recsys.features.feature_set import FeatureSet

Indices = NDArray[np.int64]
_TOP: Final = 4096
_REFRESH_MS: Final = 1000
_ROUNDING: Final = 1e-4  # a count that only faded has the same value, but for float32's last bits


class Popularity:
    """Values by catalogue index, and the best of them.

    The best are found anew once in a second of event time, when counters change: never because of who asks
    when, so that replicas that folded the same records agree.
    """

    def __init__(self, features: FeatureSet, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # Of the fast counters, which come first.
        self._main = features.kinds.index(features.main_labels[0])
        self._shown_column = len(features.kinds)  # of the slow counters, which stand behind
        self._values = np.full(1024, -np.inf, np.float64)
        self._shown = np.zeros(1024)
        self._top: Indices = np.empty(0, np.int64)
        self._moved: list[Indices] = []  # since the best were found
        self._floor = np.inf  # the value of the last of them
        self._fell = False  # whether one of them shrank since then
        self._newest_ms = -_REFRESH_MS

    @property
    def values(self) -> NDArray[np.float64]:
        """One value per item of the catalogue, -inf where nothing has happened yet."""
        self.reserve(0)
        return self._values[: len(self._catalogue)]

    @property
    def shown(self) -> NDArray[np.float64]:
        """How often each item of the catalogue was shown, by its slow counter when it last changed."""
        self.reserve(0)
        return self._shown[: len(self._catalogue)]

    def update(self, keys: Indices, counters: NDArray[np.float32], last_ms: Indices) -> None:
        """Takes the counters (n, C) of entities that changed; those that aren't items are passed over."""
        if not len(keys):
            return
        found = self._catalogue.indices_of_keys(keys)
        of = np.flatnonzero(found >= 0)
        self._set(found[of], counters[of], last_ms[of])
        before_ms, self._newest_ms = self._newest_ms, max(self._newest_ms, int(last_ms.max()))
        if before_ms // _REFRESH_MS != self._newest_ms // _REFRESH_MS:
            self._top = self._best()
            self._floor = self._values[self._top[-1]] if len(self._top) else np.inf
            self._fell, self._moved = False, []

    def enter(self, index: int, counters: Counters) -> None:
        """An item is new: what was told of it before counts from now on, so that it doesn't matter whether
        items or counters are read first."""
        if len(counters):
            _, values, last_ms = counters.export([int(self._catalogue.keys[index, 0])])
            if len(values):
                self._set(np.array([index]), values, last_ms)

    def _set(self, items: Indices, counters: NDArray[np.float32], last_ms: Indices) -> None:
        self.reserve(0)
        count = counters[:, self._main].astype(np.float64)
        values = np.log2(count + 1e-6) + last_ms / HALF_LIVES_MS[0]
        values[count <= 0] = -np.inf
        # A count that shrank may let in what isn't among the best: only then is everything looked at.
        before = self._values[items]
        fell = (before >= self._floor) & (values < before - _ROUNDING)
        self._fell = self._fell or bool(fell.any())
        self._values[items] = values
        self._moved.append(items)
        self._shown[items] = counters[:, self._shown_column]

    @property
    def top(self) -> Indices:
        """The most popular items, best first: only those that somebody engaged with."""
        return self._top

    def _best(self) -> Indices:
        """The best by (value, index): of the best before and what has moved since, as values only grow."""
        some = (
            np.arange(len(self.values)) if self._fell else np.concatenate([self._top, *self._moved])
        )
        there = np.unique(some[self.values[some] > -np.inf])
        if len(there) > _TOP:
            values = self.values[there]
            there = there[values >= np.partition(values, -_TOP)[-_TOP]]
        best: Indices = there[np.argsort(-self.values[there], kind="stable")][:_TOP]
        return best

    def reserve(self, more: int) -> None:
        """Makes room for so many more items. Another thread may read meanwhile, and none may write."""
        while len(self._values) < len(self._catalogue) + more:
            self._values = np.concatenate([self._values, np.full_like(self._values, -np.inf)])
            self._shown = np.concatenate([self._shown, np.zeros_like(self._shown)])
