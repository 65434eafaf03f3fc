"""Candidate sources, each with its share of the budget.

``trial``   new items with fewer than ``policy.trust_after`` showings, for the quota
``covisit`` items that viewers of the session's items visit too (recsys/features/covisits.py)
``vector``  items nearest to the user vector
``similar`` items nearest to the items liked last
``topic``   items of the authors and tags that the session likes
``segment`` popular items with the highest rate in the viewer's segment: same profile or context
``popular`` items with the most engagement lately
``fresh``   the newest items, so that none stays unseen
``again``   items of the viewer's history, where items may be shown again

A name with a version is a plug-in (``Source``).
A source returns catalogue indices and doesn't see the results of the others. Where several return the same
item, ``covisit`` and ``popular`` fill the places left. All read one replica version.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from recsys import plugins
from recsys.arrays.bitmap import Bitmap
from recsys.events.hashed_random import draws
from recsys.events.hashing import cross, key_of
from recsys.features.covisits import NEWER
from recsys.features.feature_set import RequestFeatures
from recsys.features.item_counters import segment_of
from recsys.features.session import Session, newest_visit
from recsys.observability.log_lines import LogThrottle
from serving.query import Query
from serving.ranking.scoring import user_vector
from serving.replica.replica import Replica
from serving.retrieval.retrieval_plan import SIMILAR, VECTOR, VectorQuery

Indices = NDArray[np.int64]
_NEWEST: Final = 2000
_TRIAL: Final = 0x7A11  # salt that keeps the draws of ``trial`` and ``fresh`` apart
_LIKED: Final = 3  # newest liked items whose neighbours ``similar`` returns
_TOPICS: Final = 4
_MET: Final = 1.0  # entries that weren't liked, supposed of each group
_OWN_HISTORY: Final = 20  # history entries from which on a viewer's own past beats the segment
_POPULAR: Final = 512  # most popular items, of which ``segment`` takes the best
_PRIOR: Final = 8.0  # showings to everybody that weigh as much as one segment's own
_log = logging.getLogger(__name__)
# Items considered of a group; a larger group is sampled. By default 80 candidates come from topics, half of
# them drawn: 256 leave room for seen items.
_POOL: Final = 256
_LEFT: Final = (
    8  # a source looks further than its window if less than one in so many of that is allowed
)
_POPULAR_MEMBERS: Final = 2048  # most popular items that are searched for members of a large group


class Source(Protocol):
    """Plug-in of the group ``recsys.sources``: finds candidates for a query.

    It may read its arguments, and changes nothing; what it draws at random follows from ``query.request_id``.
    """

    version: str  # in the policy's digest and in the sources of each item, with the name

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        """Catalogue indices (n,), int64, of allowed items, best first; those beyond k fill places that are
        left. Each millisecond is one of the answer's."""


def run_source(
    source: Source, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
) -> Indices:
    """The result of a plug-in. Raises ValueError or IndexError for a wrong one."""
    indices = source(replica, query, viewer, allowed, k)
    if not allowed[indices].all():
        raise ValueError(f"a source returns {indices}, expected allowed items only")
    return indices


class _PopularByGroup:
    """The groups of the most popular items; valid until popularity or groups change."""

    def __init__(self, replica: Replica, columns: list[int]) -> None:
        self._top, self._moves = replica.popularity.top, replica.groups.moves
        self._items = self._top[:_POPULAR_MEMBERS]
        self._groups = replica.catalogue.keys[self._items[:, None], np.array(columns, np.int64)]

    def is_current(self, replica: Replica) -> bool:
        return self._top is replica.popularity.top and self._moves == replica.groups.moves

    def members(self, key: int) -> Indices:
        """Popular items of a group."""
        chosen: Indices = self._items[(self._groups == key).any(1)]
        return chosen


class Retrieval:
    """Collects candidates for one request at a time."""

    def __init__(self, replica: Replica, load: plugins.Load = plugins.load_version) -> None:
        self.replica, self._load, self._failures = replica, load, LogThrottle()
        slots = [replica.features.slot(f"item.{name}") for name in replica.features.schema.groups]
        self._groups = [column for slot in slots for column in range(slot.start, slot.stop)]
        self._popular_by_group: _PopularByGroup | None = None
        self._sources: dict[str, Callable[[Query, RequestFeatures, Bitmap, int], Indices]] = {
            "trial": self._trial, "covisit": self._covisit, VECTOR: self._vector, SIMILAR: self._similar,
            "topic": self._topic, "segment": self._segment, "popular": self._popular, "fresh": self._fresh,
            "again": self._again,
        }  # fmt: skip

    def collect(
        self, query: Query, viewer: RequestFeatures, allowed: Bitmap, shares: Mapping[str, int]
    ) -> tuple[dict[int, list[str]], list[str]]:
        """Retrieves at most ``serve.candidates`` of the allowed items, by catalogue index with the sources of
        each, and names the sources that failed or lack the results of a shard."""
        sources, failed = dict[int, list[str]](), list[str]()
        rest = list[tuple[str, list[int]]]()
        results, limit = query.shard_results, self.replica.config.serve.candidates
        missing = self.replica.index.missing if results is None else results.missing
        for name, share in shares.items():
            if share <= 0:
                continue
            try:
                if name not in self._sources:
                    source = self._load(plugins.SOURCES, name)
                    self._sources[name] = partial(run_source, source, self.replica)
                retrieved = list(
                    dict.fromkeys(self._sources[name](query, viewer, allowed, share).tolist())
                )
            except Exception:  # a broken index must not empty the feed
                self._failures.exception(_log, "a source failed", query.now_ms / 1000, source=name)
                failed.append(name)
                continue
            if missing and self._searches(name, query.session):
                failed.append(name)
            for index in retrieved[:share]:
                if index in sources:
                    sources[index].append(name)
                elif len(sources) < limit:
                    sources[index] = [name]
            rest.append((name, retrieved[share:]))
        limit = min(limit, sum(share for share in shares.values() if share > 0))
        for name, left in rest:
            free = limit - len(sources)
            if free <= 0:
                break
            new = [index for index in left if index not in sources][:free]
            sources.update((index, [name]) for index in new)
        return sources, failed

    def _searches(self, source: str, session: Session) -> bool:
        """Whether a source searches the index for this session."""
        return source == VECTOR or (source == SIMILAR and len(self._liked(session)[0]) > 0)

    def vector_queries(
        self, session: Session, viewer: RequestFeatures, shares: Mapping[str, int]
    ) -> tuple[VectorQuery, ...]:
        """Searches of an index: for the user vector, and for the vectors of the items liked last."""
        queries = list[VectorQuery]()
        if (k := shares.get(VECTOR, 0)) > 0:
            queries.append(self._user_query(viewer, k))
        if (k := shares.get(SIMILAR, 0)) > 0:
            vectors_LV, each = self._liked_vectors(session, k)
            queries.extend(VectorQuery(SIMILAR, vector_V, each) for vector_V in vectors_LV)
        return tuple(queries)

    def _user_query(self, viewer: RequestFeatures, k: int) -> VectorQuery:
        replica = self.replica
        vector_V = user_vector(replica.model, replica.rows, replica.read(viewer))
        return VectorQuery(VECTOR, vector_V, k)

    def _liked_vectors(self, session: Session, k: int) -> tuple[NDArray[np.float32], int]:
        """Vectors of the items liked last, and how many of k neighbours each is to have."""
        indices, liked = self._liked(session)
        vectors = self.replica.vectors_of(indices)
        vectors[:, -1] = 0  # the bias, which says nothing of nearness
        return vectors, -(-k // max(1, liked))

    def _liked(self, session: Session) -> tuple[Indices, int]:
        """Indices of the items liked last, newest first, without unknown ones; and their count with these."""
        liked = [entry for entry in reversed(session.history) if entry.outcomes[0] > 0][:_LIKED]
        keys = np.array([entry.keys[0] for entry in liked], np.int64)
        indices = self.replica.catalogue.indices_of_keys(keys)
        return indices[indices >= 0], len(liked)

    def _vector(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        if query.shard_results is not None:
            return self._from_shards(VECTOR, query, allowed)
        user_query = self._user_query(viewer, k)
        self.replica.queries.append(user_query.vector_V)
        return self.replica.index.search(user_query.vector_V, k, allowed)[0]

    def _similar(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        if query.shard_results is not None:
            return self._from_shards(SIMILAR, query, allowed)
        vectors_LV, each = self._liked_vectors(query.session, k)
        hits = self.replica.index.search_each(vectors_LV, each, allowed, rough=True)
        return _concatenated(indices for indices, _ in hits)

    def _from_shards(self, source: str, query: Query, allowed: Bitmap) -> Indices:
        assert query.shard_results is not None
        keys = query.shard_results.keys.get(source, np.empty(0, np.int64))
        indices = self.replica.catalogue.indices_of_keys(keys)
        assert (indices >= 0).all(), "not of this version"
        return indices[allowed[indices]]  # where rules close many, closed ones are among them

    def _topic(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        """Items of liked groups, by how much each is liked: half by popularity, half at random."""
        liked = liked_groups(query.session, query.policy.config.unwanted)[:_TOPICS]
        salt = _salt(query)
        total = sum(weight for _, weight in liked)
        quantiles = draws(salt, np.arange(_POOL))
        parts = []
        for key, weight in liked:
            members = self._members(key, quantiles)
            members, sampled = members[allowed[members]], members
            if _too_few(query, members, sampled):
                members = self._members(key, quantiles, allowed)
            share = max(1, round(k * weight / total))
            if len(members) > share:
                values = self.replica.popularity.values[members]
                best = members[np.argsort(-values, kind="stable")[: share // 2]]
                parts.extend([best, _sample(members, share - len(best), salt)])
            else:
                parts.append(members)
        return _concatenated(parts)

    def _members(
        self, key: int, quantiles: NDArray[np.float64], within: Bitmap | None = None
    ) -> Indices:
        """Items of a group; of a large one its most popular items, and others drawn at random."""
        members = self.replica.groups.members(key)
        if within is not None:
            members = members[within[members]]
        if len(members) <= _POOL:
            return members
        popular = self._popular_by_group
        if popular is None or not popular.is_current(self.replica):
            popular = self._popular_by_group = _PopularByGroup(self.replica, self._groups)
        drawn = members[(quantiles * len(members)).astype(np.int64)]
        merged = np.sort(np.concatenate([popular.members(key), drawn]))
        first: Indices = merged[np.concatenate([[True], merged[1:] != merged[:-1]])]
        return first

    def _segment(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        """For viewers with a short history: popular items by the rate of the first label in their segment,
        smoothed by the rate among all viewers."""
        session, replica = query.session, self.replica
        if len(session.history) >= _OWN_HISTORY:
            return np.empty(0, np.int64)
        top = self._popular(query, viewer, allowed, _POPULAR)
        keys = replica.catalogue.keys[top, 0]
        segment = segment_of(replica.features, viewer.user_U)
        counts = replica.counters.read(np.stack([keys, cross(segment, keys)]), session.last_ms)
        shown = counts[..., replica.features.slow_counter("shown")]
        liked = counts[..., replica.features.slow_counter(replica.features.main_labels[0])]
        overall = (liked[0] + 1.0) / (shown[0] + 2.0)
        rate = (liked[1] + _PRIOR * overall) / (shown[1] + _PRIOR)
        return top[np.argsort(-rate, kind="stable")[:k]]

    def _popular(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        top = self.replica.popularity.top
        best = top[allowed[top]]
        if _too_few(query, best, top):
            best = self.replica.popularity.best(np.flatnonzero(allowed.mask()))
        return best[: max(k, self.replica.config.serve.candidates)]

    def _covisit(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        replica = self.replica
        history, visit = query.session.history, None
        if pause_s := replica.features.declared.visit_s:
            visit = len(newest_visit(history, pause_s, query.now_ms))
        keys, scores = replica.covisits.of_history(history, query.now_ms, visit)
        indices = replica.catalogue.indices_of_keys(keys)
        present = np.flatnonzero(indices >= 0)
        may = present[allowed[indices[present]]]
        best = may[np.lexsort((keys[may], -scores[may]))]
        return indices[best[: max(k, replica.config.serve.candidates)]]

    def _again(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        keys = np.array([entry.keys[0] for entry in query.session.history], np.int64)[::-1]
        indices = self.replica.catalogue.indices_of_keys(keys)
        indices = indices[indices >= 0]
        return indices[allowed[indices]]

    def _trial(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        newest = _newest(query, allowed)
        on_trial = self.replica.popularity.shown[newest] < query.policy.config.trust_after
        return _sample(newest[on_trial], k, _salt(query) ^ _TRIAL)

    def _fresh(self, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int) -> Indices:
        return _sample(_newest(query, allowed), k, _salt(query))


def _newest(query: Query, allowed: Bitmap) -> Indices:
    """Allowed items among the newest; where few of these are allowed, the newest of the allowed."""
    window = np.arange(max(0, len(allowed) - _NEWEST), len(allowed))
    newest = window[allowed[window]]
    if _too_few(query, newest, window):
        newest = np.flatnonzero(allowed.mask())[-_NEWEST:]
    return newest


def _too_few(query: Query, left: Indices, window: Indices) -> bool:
    """Whether a source looks further than its window, of which these are allowed: filters and rules may close
    nearly all of it."""
    return bool(query.request.filters) or _LEFT * len(left) < len(window)


def _salt(query: Query) -> int:
    """Varies random draws from request to request."""
    return key_of("request", query.request_id) & 0xFFFFFFFF


def _concatenated(parts: Iterable[Indices]) -> Indices:
    return np.concatenate([np.empty(0, np.int64), *parts])


def liked_groups(session: Session, unwanted: Collection[str]) -> list[tuple[int, float]]:
    """Liked authors and tags of the recent history with their weights, heaviest first.

    A weight is what was liked (of an entry the first label whole, each other half, of newer ones more) times
    the share of the group's entries that was: else a tag that liked items also have weighs as much as theirs,
    though the viewer passes by all else that has it. ``unwanted`` labels, as a hide, are no likes.
    """
    liked, met = dict[int, float](), dict[int, float]()
    labels = session.features.schema.labels
    others = [place for place, name in enumerate(labels) if place and name not in unwanted]
    for age, entry in enumerate(reversed(session.history)):
        liking = entry.outcomes[0] + 0.5 * any(entry.outcomes[place] for place in others)
        newness = NEWER**age
        for key in entry.keys[1:]:
            if key:
                met[key] = met.get(key, 0.0) + newness
                if liking:
                    liked[key] = liked.get(key, 0.0) + newness * liking
    weights = [
        (key, liked[key] ** 2 / (weight + _MET)) for key, weight in met.items() if liked.get(key)
    ]
    return sorted(weights, key=lambda pair: -pair[1])


def _sample(members: Indices, k: int, salt: int) -> Indices:
    """Draws k members, another draw for each salt."""
    if len(members) <= k:
        return members
    return members[np.argpartition(draws(salt, members), k)[:k]]
