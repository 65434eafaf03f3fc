"""A filter of candidates, and the one way in which filters remove items and are counted."""

from collections.abc import Collection, Mapping
from typing import Final, Protocol

import numpy as np

from recsys.features.catalogue import Catalogue
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Closed, Indices

# Names in ``removed``, and reasons why a candidate of the caller isn't in the list. Closed: by a wish of the
# viewer, a safety rule, or a rule of the policy.
UNKNOWN, EXCLUDED, FILTERED, CLOSED = "unknown", "excluded", "filtered", "closed"
HIDDEN, BLOCKED, SAFETY, RULES, SEEN = "hidden", "blocked", "safety", "rules", "seen"
CHOSEN: Final = (FILTERED, EXCLUDED, HIDDEN, BLOCKED)  # what the viewer's side removes


class Filter(Protocol):
    """Closes items to a query's list, for one reason: one of this folder, or a plug-in of ``recsys.stages``.

    It may read its arguments, and changes nothing. The candidates are either all items of the catalogue that
    the filters before let through (``candidates.allowed``), or a list of some (``candidates.indices_N``).
    """

    version: str = ""  # of a plug-in: in each impression, with the name

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Closed | None:
        """The items that it closes: a mask of the candidates' ``rows``, or a set of items, as catalogue
        indices or a bitmap. None where it doesn't apply, and then isn't counted. A plug-in gives a mask."""
        ...


Filters = Mapping[str, Filter]  # by the names under which removals are counted, in order


def close_by(filters: Filters, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
    """The candidates without those that some filters close."""
    for name, each in filters.items():
        closed = each(replica, query, candidates)
        if closed is not None:
            candidates = candidates.close(name, closed)
    return candidates


def indices_of(catalogue: Catalogue, keys: Collection[int]) -> Indices:
    """Indices of the keys that are items, looked up together: there are hundreds."""
    indices = catalogue.indices_of_keys(np.fromiter(keys, np.int64, len(keys)))
    return indices[indices >= 0]
