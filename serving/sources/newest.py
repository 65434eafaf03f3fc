"""The newest items, so that none stays unseen, and those of them that are on trial, for the quota."""

from typing import Final

import numpy as np

from recsys.arrays.bitmap import Bitmap
from recsys.features.request_features import RequestFeatures
from serving.query import Query
from serving.replica.replica import Replica
from serving.sources.source import Indices, Source, salt_of, sample, too_few

_NEWEST: Final = 2000
_TRIAL: Final = 0x7A11  # salt that keeps the draws of the two apart


class Fresh(Source):
    """A draw from the newest items."""

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        return sample(_newest(query, allowed), k, salt_of(query))


class Trial(Source):
    """A draw from the newest items with fewer than ``policy.trust_after`` showings."""

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        newest = _newest(query, allowed)
        on_trial = replica.popularity.shown[newest] < query.policy.config.trust_after
        return sample(newest[on_trial], k, salt_of(query) ^ _TRIAL)


def _newest(query: Query, allowed: Bitmap) -> Indices:
    """Allowed items among the newest; where few of these are allowed, the newest of the allowed."""
    window = np.arange(max(0, len(allowed) - _NEWEST), len(allowed))
    newest = window[allowed[window]]
    if too_few(query, newest, window):
        newest = np.flatnonzero(allowed.mask())[-_NEWEST:]
    return newest
