"""Items that the viewer has blocked or muted, alone or by a value of their fields."""

import numpy as np

from serving.filters.filter import Filter, indices_of
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Closed


class Blocked(Filter):
    """Blocked and muted items. Muted items are allowed where the caller names them. In the catalogue only
    items themselves and values of groups are found, and in a list every value."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed | None:
        catalogue, session = replica.catalogue, query.session
        if not session.wishes:
            return None
        named = query.request.candidate_ids is not None
        keys = session.wished("block") if named else session.wished("block", "mute")
        if candidates.allowed is not None:
            members = [replica.groups.members(key) for key in keys.tolist()]
            return np.unique(np.concatenate([indices_of(catalogue, keys), *members]))
        if not len(keys):
            return None
        beyond = [replica.surplus.members(key) for key in keys.tolist()]  # no column has the value
        has_key = np.isin(catalogue.keys[candidates.indices_N], keys).any(1)
        return np.asarray(has_key | np.isin(candidates.indices_N, np.concatenate(beyond)))
