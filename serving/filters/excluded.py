"""Items that the request excludes by id."""

import numpy as np

from serving.filters.filter import Filter
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Closed


class Excluded(Filter):
    """``exclude_ids`` of the request."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed:
        indices = map(replica.catalogue.index_of, query.request.exclude_ids)
        return np.array([index for index in indices if index is not None], np.int64)
