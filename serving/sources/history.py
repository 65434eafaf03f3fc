"""Candidates from the viewer's history: items that its viewers visit too, and its items again."""

import numpy as np

from recsys.arrays.bitmap import Bitmap
from recsys.features.families.visit import newest_visit
from recsys.features.request_features import RequestFeatures
from serving.query import Query
from serving.replica.replica import Replica
from serving.sources.source import Indices, Source


class CoVisits(Source):
    """Items that viewers of the session's items visit too (recsys/features/covisits.py); they fill places
    that others leave."""

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        history, visit = query.session.history, None
        if pause_s := replica.features.declared.visit_s:
            visit = len(newest_visit(history, pause_s, query.now_ms))
        keys, scores = replica.covisits.of_history(history, query.now_ms, visit)
        indices = replica.catalogue.indices_of_keys(keys)
        present = np.flatnonzero(indices >= 0)
        may = present[allowed[indices[present]]]
        best = may[np.lexsort((keys[may], -scores[may]))]
        return indices[best[: max(k, replica.config.serve.candidates)]]


class Again(Source):
    """Items of the viewer's history, newest first, where items may be shown again."""

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        keys = np.array([entry.keys[0] for entry in query.session.history], np.int64)[::-1]
        indices = replica.catalogue.indices_of_keys(keys)
        indices = indices[indices >= 0]
        return indices[allowed[indices]]
