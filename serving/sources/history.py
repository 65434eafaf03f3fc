"""Candidates from the viewer's history: items that its viewers visit too, and its items again."""

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.features.families.visit import newest_visit
from recsys.features.request_features import RequestFeatures
from recsys.features.session import NOBODY
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
        most = max(k, replica.config.serve.candidates)
        # Few of thousands are wanted: the others are looked at where these are closed.
        for several in (2 * most, len(keys)):
            near = _best(scores, several)
            indices = replica.catalogue.indices_of_keys(keys[near])
            may = np.flatnonzero(indices >= 0)
            may = may[allowed[indices[may]]]
            if len(may) >= most:
                break
        may = may[_best(scores[near[may]], most)]
        return indices[may[np.lexsort((keys[near[may]], -scores[near[may]]))[:most]]]


def _best(scores_N: NDArray[np.float64], k: int) -> Indices:
    """Places of the k best, and of all that equal the last."""
    surplus = len(scores_N) - k
    if surplus <= 0:
        return np.arange(len(scores_N))
    return np.flatnonzero(scores_N >= np.partition(scores_N, surplus)[surplus])


class Again(Source):
    """The viewer's own items, where these may be shown again: those with the most engagements first, of equal
    ones the newest. Each is in the history, or engaged with and still remembered."""

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        session, features = query.session, replica.features
        if session.user_id == NOBODY:
            return np.zeros(0, np.int64)
        newest = [entry.keys[0] for entry in reversed(session.history)]
        keys = np.array(list(dict.fromkeys((*newest, *reversed(session.seen)))), np.int64)
        label = features.slow_counter(features.main_labels[0])
        engaged = session.counters.read(keys, query.now_ms)[:, label]
        own = np.flatnonzero((engaged > 0) | (np.arange(len(keys)) < len(set(newest))))
        indices = replica.catalogue.indices_of_keys(keys[own[np.argsort(-engaged[own], kind="stable")]])
        indices = indices[indices >= 0]
        return indices[allowed[indices]]
