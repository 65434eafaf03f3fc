"""Items whose vectors are nearest to the user vector, and to the items liked last.

Where shards hold the vectors, these are asked before the pipeline runs (serving/retrieval/retrieval_plan.py).
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.features.request_features import RequestFeatures
from recsys.features.session import Session
from serving.query import Query
from serving.replica.replica import Replica
from serving.retrieval.retrieval_plan import SIMILAR, VECTOR, VectorQuery
from serving.scorers.probabilities import user_vector
from serving.sources.source import Indices, Source

_LIKED: Final = 3  # newest liked items whose neighbours are found


class Nearest(Source, Protocol):
    """A source that searches the index of item vectors."""

    def searches(self, replica: Replica, session: Session) -> bool:
        """Whether it searches for this session."""
        ...

    def vectors(
        self, replica: Replica, session: Session, viewer: RequestFeatures, k: int
    ) -> list[VectorQuery]:
        """Its searches for k candidates."""
        ...


class ToUser(Nearest):
    """Items nearest to the user vector."""

    def searches(self, replica: Replica, session: Session) -> bool:
        return True

    def vectors(
        self, replica: Replica, session: Session, viewer: RequestFeatures, k: int
    ) -> list[VectorQuery]:
        vector_V = user_vector(replica.model, replica.rows, replica.read(viewer))
        return [VectorQuery(VECTOR, vector_V, k)]

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        if query.shard_results is not None:
            return _from_shards(replica, VECTOR, query, allowed)
        (search,) = self.vectors(replica, query.session, viewer, k)
        replica.queries.append(search.vector_V)
        return replica.index.search(search.vector_V, k, allowed)[0]


class ToLiked(Nearest):
    """Items nearest to those that the viewer liked last."""

    def searches(self, replica: Replica, session: Session) -> bool:
        return len(_liked(replica, session)[0]) > 0

    def vectors(
        self, replica: Replica, session: Session, viewer: RequestFeatures, k: int
    ) -> list[VectorQuery]:
        vectors_LV, each = _liked_vectors(replica, session, k)
        return [VectorQuery(SIMILAR, vector_V, each) for vector_V in vectors_LV]

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        if query.shard_results is not None:
            return _from_shards(replica, SIMILAR, query, allowed)
        vectors_LV, each = _liked_vectors(replica, query.session, k)
        hits = replica.index.search_each(vectors_LV, each, allowed, rough=True)
        return np.concatenate([np.empty(0, np.int64), *(indices for indices, _ in hits)])


def _liked_vectors(replica: Replica, session: Session, k: int) -> tuple[NDArray[np.float32], int]:
    """Vectors of the items liked last, and how many of k neighbours each is to have."""
    indices, liked = _liked(replica, session)
    vectors = replica.vectors_of(indices)
    vectors[:, -1] = 0  # the bias, which says nothing of nearness
    return vectors, -(-k // max(1, liked))


def _liked(replica: Replica, session: Session) -> tuple[Indices, int]:
    """Indices of the items liked last, newest first, without unknown ones; and their count with these."""
    liked = [entry for entry in reversed(session.history) if entry.outcomes[0] > 0][:_LIKED]
    keys = np.array([entry.keys[0] for entry in liked], np.int64)
    indices = replica.catalogue.indices_of_keys(keys)
    return indices[indices >= 0], len(liked)


def _from_shards(replica: Replica, name: str, query: Query, allowed: Bitmap) -> Indices:
    """The shards' results for a source."""
    assert query.shard_results is not None
    keys = query.shard_results.keys.get(name, np.empty(0, np.int64))
    indices = replica.catalogue.indices_of_keys(keys)
    assert (indices >= 0).all(), "not of this version"
    return indices[allowed[indices]]  # where rules close many, closed ones are among them
