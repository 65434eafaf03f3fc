"""Requests to the retrieval shards for one query, and the merge of their responses. Pure.

Each shard gets everything in one message: all vector queries, and of the items that must not be returned only
its own. Results are valid for one version, and count only where the replica is still at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import split
from serving.index.exact_order import Hits
from serving.index.item_index import sharded_name
from serving.index.nearest import merge_hits
from serving.query import ShardResults, VectorVersion
from serving.retrieval.retrieval_shard import ShardRequest, ShardResponse

Keys = NDArray[np.int64]
VECTOR: Final = "vector"  # the source that searches with a user vector
SIMILAR: Final = "similar"  # the source that searches with vectors of items


@dataclass(frozen=True)
class VectorQuery:
    """A search for the k items nearest to a vector (V,), for one source of candidates."""

    source: str
    vector_V: NDArray[np.float32]
    k: int


@dataclass(frozen=True)
class RetrievalPlan:
    """Searches at a version. ``keys``: of the items that may be returned if ``keys_are_allowed``, else of
    living items that must not be."""

    version: VectorVersion
    queries: tuple[VectorQuery, ...]
    keys: Keys
    keys_are_allowed: bool = False

    @property
    def sent(self) -> list[VectorQuery]:
        """The searches in the order of the requests: user vectors first."""
        return sorted(self.queries, key=lambda query: query.source != VECTOR)

    def requests(self, shards: int, wait_ms: float) -> list[ShardRequest]:
        """One request for each shard."""
        vectors = np.array([query.vector_V for query in self.sent], np.float32).tobytes()
        ks = [query.k for query in self.sent]
        user_vectors = sum(query.source == VECTOR for query in self.queries)
        split_keys = split(self.keys, shards)
        return [
            ShardRequest(
                self.version, vectors, ks, user_vectors, self.keys[split_keys.of(shard)].tobytes(),
                wait_ms, shard, shards, self.keys_are_allowed,
            )
            for shard in range(shards)
        ]  # fmt: skip

    def merge(self, responses: Sequence[ShardResponse | None]) -> ShardResults:
        """Results of all shards together. Shards without an answer (None, or a refusal) are left out: half of
        the neighbours are better than none, have the same version, and are marked as incomplete."""
        answers = [None if r is None or r.refused else r for r in responses]
        hits = [_hits_of(answer) for answer in answers if answer is not None]
        keys: dict[str, list[Keys]] = {}
        for place, query in enumerate(self.sent):
            parts = [shard_hits[place] for shard_hits in hits]
            merged = merge_hits(parts, query.k)[0] if parts else np.empty(0, np.int64)
            keys.setdefault(query.source, []).append(merged)
        return ShardResults(
            self.version,
            sharded_name([None if answer is None else answer.index for answer in answers]),
            {source: np.concatenate(parts) for source, parts in keys.items()},
            missing=None in answers,
        )


def _hits_of(response: ShardResponse) -> list[Hits]:
    ends = np.cumsum(response.counts)[:-1]
    keys = np.frombuffer(response.keys, np.int64)
    products = np.frombuffer(response.products, np.float32)
    return list(zip(np.split(keys, ends), np.split(products, ends), strict=True))
