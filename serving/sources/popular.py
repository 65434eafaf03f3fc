"""Popular items: of all viewers, and in the viewer's segment."""

from typing import Final

import numpy as np

from recsys.arrays.bitmap import Bitmap
from recsys.events.hashing import cross
from recsys.features.item_counters import segment_of
from recsys.features.request_features import RequestFeatures
from serving.query import Query
from serving.replica.replica import Replica
from serving.sources.source import Indices, Source, too_few

_OWN_HISTORY: Final = 20  # history entries from which on a viewer's own past beats the segment
_POPULAR: Final = 512  # most popular items, of which those of a segment are chosen
_PRIOR: Final = 8.0  # showings to everybody that weigh as much as one segment's own


class Popular(Source):
    """Items with the most engagement lately; they fill places that others leave."""

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        top = replica.popularity.top
        best = top[allowed[top]]
        if too_few(query, best, top):
            best = replica.popularity.best(np.flatnonzero(allowed.mask()))
        return best[: max(k, replica.config.serve.candidates)]


class Segment(Source):
    """Popular items with the highest rate of the first label in the viewer's segment (same profile or
    context), smoothed by the rate among all viewers; for viewers with a short history."""

    def __init__(self) -> None:
        self._popular = Popular()

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        session = query.session
        if len(session.history) >= _OWN_HISTORY:
            return np.empty(0, np.int64)
        top = self._popular(replica, query, viewer, allowed, _POPULAR)
        keys = replica.catalogue.keys[top, 0]
        segment = segment_of(replica.features, viewer.user_U)
        counts = replica.counters.read(np.stack([keys, cross(segment, keys)]), session.last_ms)
        shown = counts[..., replica.features.slow_counter("shown")]
        liked = counts[..., replica.features.slow_counter(replica.features.main_labels[0])]
        overall = (liked[0] + 1.0) / (shown[0] + 2.0)
        rate = (liked[1] + _PRIOR * overall) / (shown[1] + _PRIOR)
        return top[np.argsort(-rate, kind="stable")[:k]]
