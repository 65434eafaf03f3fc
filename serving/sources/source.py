"""A source of candidates, and the draws and windows that several of them share.

A source returns catalogue indices and doesn't see the results of the others.
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.events.hashed_random import draws
from recsys.events.hashing import key_of
from recsys.features.request_features import RequestFeatures
from serving.query import Query
from serving.replica.replica import Replica

Indices = NDArray[np.int64]
_LEFT: Final = 8  # a source looks further than its window if less than one in so many of that is allowed


class Source(Protocol):
    """Finds candidates for a query: one of this folder, or a plug-in of the group ``recsys.sources``.

    It may read its arguments, and changes nothing; what it draws at random follows from ``query.request_id``.
    """

    version: str = ""  # of a plug-in: in the policy's digest and in each item's sources, with the name

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        """Catalogue indices (n,), int64, of allowed items, best first; those beyond k fill places that are
        left. Each millisecond is one of the answer's."""
        ...


class Checked(Source):
    """A plug-in whose results are checked. Raises ValueError or IndexError for a wrong one."""

    def __init__(self, plugin: Source) -> None:
        self._plugin = plugin

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        indices = self._plugin(replica, query, viewer, allowed, k)
        if not allowed[indices].all():
            raise ValueError(f"a source returns {indices}, expected allowed items only")
        return indices


def too_few(query: Query, left: Indices, window: Indices) -> bool:
    """Whether a source looks further than its window, of which these are allowed: filters and rules may close
    nearly all of it."""
    return bool(query.request.filters) or _LEFT * len(left) < len(window)


def salt_of(query: Query) -> int:
    """Varies random draws from request to request."""
    return key_of("request", query.request_id) & 0xFFFFFFFF


def sample(members: Indices, k: int, salt: int) -> Indices:
    """Draws k members, another draw for each salt."""
    if len(members) <= k:
        return members
    return members[np.argpartition(draws(salt, members), k)[:k]]
