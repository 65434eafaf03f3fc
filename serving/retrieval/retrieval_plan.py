"""What a request asks of the shards of retrieval, and what their answers come to. Pure.

All that a request needs goes to each shard in one message, and what a shard needn't know stays here: of the
items that mustn't come it is told its own. What the shards found is good for one version, and is used only
where the replica still stands at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from parameter_server.table.routing import split
from serving.index.item_index import sharded_name
from serving.index.nearest import Found, merged
from serving.retrieval.retrieval_shard import Ask, Told, Version

Keys = NDArray[np.int64]
SIDE: Final = "vector"  # the source whose query is a user side
SIMILAR: Final = "similar"  # and the one whose queries are vectors of items


@dataclass(frozen=True)
class Query:
    """So many items near a vector (V,), for a source of candidates."""

    source: str
    vector_V: NDArray[np.float32]
    k: int


@dataclass(frozen=True)
class Plan:
    """What is to be found at a version. ``without``: the keys of living items that mustn't come."""

    version: Version
    queries: tuple[Query, ...]
    without: Keys

    @property
    def sent(self) -> list[Query]:
        """The queries in the order in which shards are asked: user sides first."""
        return sorted(self.queries, key=lambda query: query.source != SIDE)


@dataclass(frozen=True)
class Near:
    """What was found at a version, by source: keys, best first. ``index``: what was searched, as a stamp
    says it; ``missing``: whether a shard gave no answer, so that its items aren't among them."""

    version: Version
    index: str
    found: dict[str, Keys]
    missing: bool


def asks_of(plan: Plan, shards: int, wait_ms: float) -> list[Ask]:
    """What each shard is asked."""
    queries = plan.sent
    sent = np.array([query.vector_V for query in queries], np.float32).tobytes()
    ks, sides = [query.k for query in queries], sum(query.source == SIDE for query in queries)
    parts = split(plan.without, shards)
    return [
        Ask(
            plan.version,
            sent,
            ks,
            sides,
            plan.without[parts.of(shard)].tobytes(),
            wait_ms,
            shard,
            shards,
        )
        for shard in range(shards)
    ]


def near_of(plan: Plan, told: Sequence[Told | None]) -> Near:
    """What all shards together found. Those that gave no answer (None, or a refusal) are left out: half of
    what is near is better than none, it is of the same version, and the answer says that some is missing."""
    there = [its for its in told if its is not None and not its.refused]
    answers = [found_of(its) for its in there]
    found: dict[str, list[Keys]] = {}
    for place, query in enumerate(plan.sent):
        parts = [answer[place] for answer in answers]
        keys = merged(parts, query.k)[0] if parts else np.empty(0, np.int64)
        found.setdefault(query.source, []).append(keys)
    names = [None if its is None or its.refused else its.index for its in told]
    return Near(
        plan.version,
        sharded_name(names),
        {source: np.concatenate(parts) for source, parts in found.items()},
        len(there) < len(told),
    )


def found_of(told: Told) -> list[Found]:
    """A shard's answer to each query."""
    ends = np.cumsum(told.counts)[:-1]
    keys = np.frombuffer(told.keys, np.int64)
    products = np.frombuffer(told.products, np.float32)
    return list(zip(np.split(keys, ends), np.split(products, ends), strict=True))
