"""Collects candidates from sources, each with its share of the budget.

``trial``   new items with fewer than ``policy.trust_after`` showings, for the quota
``covisit`` items that viewers of the session's items visit too
``vector``  items nearest to the user vector
``similar`` items nearest to the items liked last
``topic``   items of the authors and tags that the session likes
``segment`` popular items with the highest rate in the viewer's segment: same profile or context
``popular`` items with the most engagement lately
``fresh``   the newest items, so that none stays unseen
``again``   items of the viewer's history, where items may be shown again

A name with a version is a plug-in, of the same type (serving/sources/source.py). Where several return the
same item, ``covisit`` and ``popular`` fill the places left. All read one replica version.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys import plugins
from recsys.arrays.bitmap import Bitmap
from recsys.features.request_features import RequestFeatures
from recsys.features.session import Session
from recsys.observability.log_lines import LogThrottle
from serving.query import Query
from serving.replica.replica import Replica
from serving.retrieval.retrieval_plan import SIMILAR, VECTOR, VectorQuery
from serving.sources.history import Again, CoVisits
from serving.sources.merging import Merging
from serving.sources.nearest import Nearest, ToLiked, ToUser
from serving.sources.newest import Fresh, Trial
from serving.sources.popular import Popular, Segment
from serving.sources.source import Checked, Indices, Source
from serving.sources.topic import Topic

SEARCHING: Final[Mapping[str, Callable[[], Nearest]]] = {VECTOR: ToUser, SIMILAR: ToLiked}
BUILT_IN: Final[Mapping[str, Callable[[], Source]]] = {
    "trial": Trial, "covisit": CoVisits, **SEARCHING, "topic": Topic, "segment": Segment,
    "popular": Popular, "fresh": Fresh, "again": Again,
}  # fmt: skip
_log = logging.getLogger(__name__)


class Retrieval:
    """Collects candidates for one request at a time."""

    def __init__(self, replica: Replica, load: plugins.Load = plugins.load_version) -> None:
        self.replica, self._load, self._failures = replica, load, LogThrottle()
        self._merge = Merging()
        self._searching: dict[str, Nearest] = {name: make() for name, make in SEARCHING.items()}
        self._sources: dict[str, Source] = {name: make() for name, make in BUILT_IN.items()}
        self._sources |= self._searching

    def collect(
        self, query: Query, viewer: RequestFeatures, allowed: Bitmap, shares: Mapping[str, int]
    ) -> tuple[Indices, NDArray[np.int64], list[str]]:
        """Retrieves at most ``serve.candidates`` of the allowed items: their catalogue indices (N,) and a bit
        for each source (N,), in the order of ``shares``; and names the sources that failed or lack the
        results of a shard.
        """
        found, places, failed = list[Indices](), list[int](), list[str]()
        results = query.shard_results
        missing = self.replica.index.missing if results is None else results.missing
        for place, (name, share) in enumerate(shares.items()):
            if share <= 0:
                continue
            try:
                if name not in self._sources:
                    self._sources[name] = Checked(self._load(plugins.SOURCES, name))
                found.append(self._sources[name](self.replica, query, viewer, allowed, share))
                places.append(place)
            except Exception:  # a broken index must not empty the feed
                self._failures.exception(_log, "a source failed", query.now_ms / 1000, source=name)
                failed.append(name)
                continue
            searching = self._searching.get(name) if missing else None
            if searching and searching.searches(self.replica, query.session):
                failed.append(name)
        each, limit = [*shares.values()], self.replica.config.serve.candidates
        budget = sum(share for share in each if share > 0)
        merged = self._merge(
            found, [each[p] for p in places], places, limit, budget, len(self.replica.catalogue)
        )
        return *merged, failed

    def vector_queries(
        self, session: Session, viewer: RequestFeatures, shares: Mapping[str, int]
    ) -> tuple[VectorQuery, ...]:
        """Searches of an index: for the user vector, and for the vectors of the items liked last."""
        queries = list[VectorQuery]()
        for name, source in self._searching.items():
            if (k := shares.get(name, 0)) > 0:
                queries += source.vectors(self.replica, session, viewer, k)
        return tuple(queries)
