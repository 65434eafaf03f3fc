"""Lowers what resembles items that the viewer hid, and what the viewer wants less of."""

from typing import Final

import numpy as np

from serving.query import Query
from serving.replica.replica import Replica
from serving.replica.value_index import counted_values
from serving.request import Candidates, Floats
from serving.scorers.scorer import Scorer

NOT_INTERESTED: Final = "not_interested"  # in ``Candidates.added``
_HIDDEN: Final = 20  # newest hidden items whose authors and tags count


class NotInterested(Scorer):
    """Lowers items by authors and with tags of hidden items by up to ``policy.not_interested``.

    A group weighs hidden / (hidden + liked + 1): one hide among many likes is about the item, not about
    everything that shares a tag with it. The heaviest group of an item counts. An item, or a value of its
    fields, that the viewer wants less of weighs 1.
    """

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        session, penalty = query.session, query.policy.config.not_interested
        features = replica.features
        less = session.wished("less")
        if not penalty or not (session.hidden or len(less)) or not len(candidates.indices_N):
            return candidates
        wished_N = np.asarray(np.isin(candidates.features.items_NI, less).any(1), np.float64)
        newest = np.array(list(session.hidden)[-_HIDDEN:], np.int64)
        keys, hidden = counted_values(replica.catalogue, newest, features.group_columns())
        if not len(keys):
            lowered = candidates.add_scores(NOT_INTERESTED, -penalty * wished_N)
            return lowered if len(less) else candidates
        liked = features.slow_counter(features.main_labels[0])
        met = session.counters.read(keys, session.last_ms)[:, liked]
        weights = hidden / (hidden + met + 1.0)
        groups_NG = candidates.features.items_NI[:, features.group_columns()]
        places = np.searchsorted(keys, groups_NG).clip(max=len(keys) - 1)
        heaviest = np.where(keys[places] == groups_NG, weights[places], 0.0).max(1, initial=0.0)
        weights_N: Floats = np.maximum(heaviest, wished_N)
        return candidates.add_scores(NOT_INTERESTED, -penalty * weights_N)
