"""Lists that are the same for all viewers: popular, latest and trending items, and those similar to one.

Nothing is known of who sees them: all safety rules hold, and rules of the policy that remove items. Such a
list is no impression.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policies
from recsys.events.hashing import Id
from recsys.events.rejection import Rejected
from recsys.features.session import NOBODY, Session
from serving.pipeline import BY_VIEWER, FILTERS, Pipeline
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import AnswerItem, Request
from serving.retrieval.retrieval_client import LONGEST_S, RetrievalClient
from serving.retrieval.retrieval_plan import SIMILAR, VectorQuery

Indices = NDArray[np.int64]
Filters = Mapping[str, Any]
Floats = NDArray[np.float64]
Scored = tuple[Indices, Floats]  # items, best first, and their scores
_MOST: Final = 4096
_CHECKED: Final = 256  # items that rules are applied to at once
_SPARE: Final = 10  # neighbours searched by inner product, for each that is listed by cosine


def popular(replica: Replica, allowed: Indices, now_ms: int) -> Scored:
    """Items with the most engagements of the first label; their count, which fades with time."""
    best = replica.popularity.best(allowed)
    halvings = now_ms / replica.features.half_lives_ms[0]
    return best, np.exp2(replica.popularity.values[best] - halvings)


def latest(replica: Replica, allowed: Indices, now_ms: int) -> Scored:
    """Items published last; the time of the first publication, in milliseconds since 1970."""
    times = replica.catalogue.published_ms
    if len(allowed) > _MOST:  # sorting all would take several times as long
        allowed = allowed[times[allowed] >= np.partition(times[allowed], -_MOST)[-_MOST]]
    best = allowed[::-1][np.argsort(-times[allowed[::-1]], kind="stable")]
    return best, times[best].astype(np.float64)


def trending(replica: Replica, allowed: Indices, now_ms: int) -> Scored:
    """Items with more engagements lately than usual for them; the surplus in standard deviations."""
    features, pool = replica.features, replica.popularity.best(allowed)
    if len(features.speeds) < 2:
        expected = "two or more in the app's definition: engagements lately against the usual"
        raise Rejected("features.half_lives", features.declared.half_lives_h, expected)
    counts = replica.counters.read(replica.catalogue.keys[pool, 0], now_ms).astype(np.float64)
    label, half_lives = features.main_labels[0], features.half_lives_ms
    usual = counts[:, features.slow_counter(label)] * half_lives[0] / half_lives[-1]
    scores = (counts[:, features.kinds.index(label)] - usual) / np.sqrt(usual + 1.0)
    order = np.argsort(-scores, kind="stable")[: int((scores > 0).sum())]
    return pool[order], scores[order]


Order = Callable[[Replica, Indices, int], Scored]


class ItemLists:
    """Lists from one replica. ``shards``: as in Service."""

    def __init__(self, pipeline: Pipeline, shards: RetrievalClient | None, now_ms: Callable[[], int]) -> None:
        self._pipeline, self._shards, self._now_ms = pipeline, shards, now_ms
        self._replica, self._catalogue = pipeline.replica, pipeline.replica.catalogue
        self._policy = Policies(self._replica.config.policy).resolve(NOBODY)

    def ordered(
        self, order: Order, n: int, filters: Filters, exclude_ids: Sequence[Id] = ()
    ) -> list[AnswerItem]:
        """The first items in an order."""
        query = self._query(n, filters, *exclude_ids)
        allowed = np.flatnonzero(self._pipeline.allowed_items(query)[0].mask())
        return self._first(query, order.__name__, *order(self._replica, allowed, query.now_ms))

    async def similar(self, n: int, filters: Filters, *item_ids: Id) -> tuple[list[AnswerItem], bool]:
        """The other items nearest to some by the cosine of vectors, of several their mean, and whether those
        of a shard are missing. Raises KeyError if none of the items is known."""
        indices, query = map(self._catalogue.index_of, item_ids), self._query(n, filters, *item_ids)
        living = [i for i in indices if i is not None and self._catalogue.alive[i]]
        if not living:
            raise KeyError(*item_ids)
        vector_V = self._replica.vectors_of(np.array(living)).mean(0, dtype=np.float32)
        vector_V[-1] = 0  # the bias, which says nothing of nearness
        near, missing = await self._near(query, VectorQuery(SIMILAR, vector_V, _SPARE * n))
        vectors_NV = self._replica.vectors_of(near)[:, :-1]
        norms_N = np.linalg.norm(vectors_NV, axis=1) * np.linalg.norm(vector_V)
        scores_N = (vectors_NV @ vector_V[:-1] / np.maximum(norms_N, 1e-12)).astype(np.float64)
        order = np.argsort(-scores_N, kind="stable")
        return self._first(query, SIMILAR, near[order], scores_N[order]), missing

    async def _near(self, query: Query, search: VectorQuery) -> tuple[Indices, bool]:
        allowed, _ = self._pipeline.allowed_items(query, FILTERS if self._shards is None else BY_VIEWER)
        if self._shards is None:
            hits = self._replica.index.search(search.vector_V, search.k, allowed, rough=True)
            return hits[0], False
        plan = self._pipeline.planned((search,), allowed)
        results = await self._shards.search(plan, LONGEST_S)
        near = self._catalogue.indices_of_keys(results.keys[SIMILAR])
        return near[self._catalogue.alive[near]], results.missing  # some may be gone by now

    def _query(self, n: int, filters: Filters, *without: Id) -> Query:
        request = Request(NOBODY, n, exclude_ids=without, filters=filters)
        session = Session(NOBODY, self._replica.features)
        return Query(request, session, self._policy, self._now_ms(), viewer_known=False)

    def _first(self, query: Query, name: str, indices: Indices, scores: Floats) -> list[AnswerItem]:
        """The first ``n`` items that no rule removes."""
        n, places = query.request.n, list[int]()
        for start in range(0, len(indices), _CHECKED):
            is_open = self._pipeline.open_items(query, indices[start : start + _CHECKED])
            places.extend((np.flatnonzero(is_open) + start).tolist())
            if len(places) >= n:
                break
        items = list[AnswerItem]()
        for place in places[:n]:
            index, score = int(indices[place]), float(scores[place])
            item_id, fields = self._catalogue.ids[index], self._catalogue.fields[index]
            items.append(AnswerItem(item_id, len(items), score, 1.0, (name,), fields))
        return items
