"""Items that the viewer has hidden, and those that the viewer has seen."""

import numpy as np

from serving.filters.filter import Filter, indices_of
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Closed


class Hidden(Filter):
    """Items that the viewer has hidden: they never come again."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed:
        return indices_of(replica.catalogue, query.session.hidden)


class Seen(Filter):
    """Items that the viewer has seen, unless they may repeat. Where fewer items than requested would remain,
    they come again: an empty feed is worse. The last filter of the catalogue, since it counts what the others
    left."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed:
        if replica.config.sessions.repeats:
            return np.zeros(0, np.int64)
        seen, allowed = indices_of(replica.catalogue, query.session.seen), candidates.allowed
        assert allowed is not None, "seen items are closed in the catalogue alone"
        spare = allowed.count - query.request.n
        if spare >= len(seen) or spare >= len(np.unique(seen[allowed[seen]])):
            return seen
        return seen[:0]
