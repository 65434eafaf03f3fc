"""Features of a query's viewer and candidates, at the state of one replica."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.features.counters import CounterTable
from recsys.features.feature_builder import FeatureBuilder
from recsys.features.request_features import RequestFeatures
from serving.query import Query
from serving.replica.replica import Replica

_NO_ITEMS: Final = np.zeros(0, np.int64)


class QueryFeatures:
    """Builds features from a replica."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self.builder = replica, FeatureBuilder(replica.features)

    def of(
        self,
        query: Query,
        indices: NDArray[np.int64] = _NO_ITEMS,
        viewer: RequestFeatures | None = None,
        counters: CounterTable | None = None,
    ) -> RequestFeatures:
        """Features of the viewer, and of items by catalogue index. ``viewer``: those of the viewer alone, if
        they were built before; ``counters``: in place of the replica's."""
        request, replica = query.request, self._replica
        return self.builder.build(
            query.session, request.surface, request.context, indices,
            replica.catalogue, replica.counters if counters is None else counters, query.now_ms, viewer,
            covisits=replica.covisits,
        )  # fmt: skip

    def listed(self, features: RequestFeatures, chosen: NDArray[np.int64]) -> RequestFeatures:
        """Features of some candidates as a list: compared with each other."""
        listed = features.rows(chosen)
        self.builder.compare(listed.dense_NF)
        return listed
