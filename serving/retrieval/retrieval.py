"""Candidates from several sources, each with its share of the budget.

``trial``   new items that were shown less often than ``policy.trust_after``: what the quota is spent on
``vector``  the items nearest to the user side
``similar`` the items nearest to what was liked last
``topic``   items of the authors and tags that the session likes
``segment`` what engages most, of the popular, people of the same profile or in the same context
``popular`` what engages most lately
``fresh``   the newest items, so that none stays unseen

A source returns catalogue indices; none looks at what another found. All read one version of the replica.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.events.hashed_random import draws
from recsys.events.hashing import cross
from recsys.features.feature_set import RequestFeatures
from recsys.features.item_counters import segment_of
from recsys.features.session import Entry, Session
from serving.ranking.scoring import user_vector
from serving.replica.replica import Replica
from serving.retrieval.retrieval_plan import SIDE, SIMILAR, Near, Query

Indices = NDArray[np.int64]
_NEWEST: Final = 2000
_TRIAL: Final = 0x7A11  # so that ``trial`` and ``fresh`` don't draw the same
_LIKED: Final = 3  # newest liked items that ``similar`` looks around
_TOPICS: Final = 4
_KNOWN: Final = (
    20  # items in the history, from which on a viewer's own past says more than their segment
)
_POPULAR: Final = 512  # the most popular, among which a segment has its favourites
_PRIOR: Final = 8.0  # showings of an item to everybody that weigh as much as one segment's own
_log = logging.getLogger(__name__)
# Items of a group that are looked at; a larger group is drawn from. By default 80 candidates are of topics,
# half of them drawn: 256 leave room for what was seen.
_POOL: Final = 256
_KNOWN_BEST: Final = 2048  # of the most popular, that are looked through for those of a large group


class _Known:
    """The most popular items by their groups: valid as long as neither changes."""

    def __init__(self, replica: Replica, columns: list[int]) -> None:
        self._top, self._moves = replica.popularity.top, replica.groups.moves
        known = self._top[:_KNOWN_BEST]
        groups = replica.catalogue.keys[known][:, columns].ravel()
        order = np.argsort(groups, kind="stable")
        self._groups, self._items = groups[order], np.repeat(known, len(columns))[order]

    def holds(self, replica: Replica) -> bool:
        return self._top is replica.popularity.top and self._moves == replica.groups.moves

    def of(self, key: int) -> Indices:
        """Those of a group. One that has it twice comes twice."""
        start = np.searchsorted(self._groups, key, "left")
        return self._items[start : np.searchsorted(self._groups, key, "right")]


@dataclass(frozen=True)
class Found:
    """Candidates by catalogue index, with the sources of each; and the sources that failed."""

    sources: dict[int, list[str]]
    failed: list[str]


class Retrieval:
    """Collects candidates for one request."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        slots = [replica.features.slot(f"item.{name}") for name in replica.features.schema.groups]
        self._groups = [column for slot in slots for column in range(slot.start, slot.stop)]
        self._best: _Known | None = None

    def collect(
        self,
        session: Session,
        user: RequestFeatures,
        wanted: Bitmap,
        shares: Mapping[str, int],
        limit: int,
        salt: int,
        trust_after: int = 0,
        near: Near | None = None,
    ) -> Found:
        """Catalogue indices with the sources that found them, at most ``limit``.

        ``wanted`` are the items that may come; ``salt`` varies what is drawn at random from request to
        request. ``near``: what the shards found of this version, where they have the index. A source that
        fails finds nothing, and is named; so is one that lacks what a shard would have found.
        """
        sources: dict[str, Callable[[int], Indices]] = {
            "trial": lambda k: self._trial(wanted, k, salt, trust_after),
            SIDE: lambda k: self._near(SIDE, session, user, wanted, k, near),
            SIMILAR: lambda k: self._near(SIMILAR, session, user, wanted, k, near),
            "topic": lambda k: self._topic(session, wanted, k, salt),
            "segment": lambda k: self._segment(session, user, wanted, k),
            "popular": lambda k: self._popular(wanted, k),
            "fresh": lambda k: self._fresh(wanted, k, salt),
        }
        found, failed = dict[int, list[str]](), list[str]()
        missing = self.replica.index.missing if near is None else near.missing
        for name, share in shares.items():
            if share <= 0:
                continue
            try:
                indices = dict.fromkeys(sources[name](share).tolist())
            except Exception:  # a broken index must not empty the feed
                _log.exception("a source of candidates failed", extra={"source": name})
                failed.append(name)
                continue
            if missing and (name == SIDE or (name == SIMILAR and len(self._liked(session)[0]))):
                failed.append(name)
            for index in indices:
                if index in found:
                    found[index].append(name)
                elif len(found) < limit:
                    found[index] = [name]
        return Found(found, failed)

    def queries(
        self, session: Session, user: RequestFeatures, shares: Mapping[str, int]
    ) -> tuple[Query, ...]:
        """What a request asks of an index: the user side, and the vectors of what was liked last."""
        asked = (
            self._queries(name, session, user, shares[name])
            for name in (SIDE, SIMILAR)
            if shares.get(name, 0) > 0
        )
        return tuple(query for queries in asked for query in queries)

    def _queries(self, source: str, session: Session, user: RequestFeatures, k: int) -> list[Query]:
        replica = self.replica
        if source == SIDE:
            return [Query(source, user_vector(replica.model, replica.rows, user), k)]
        known, liked = self._liked(session)
        return [Query(source, vector, -(-k // liked)) for vector in replica.vectors_of(known)]

    def _near(
        self, source: str, session: Session, user: RequestFeatures, wanted: Bitmap, k: int,
        near: Near | None,
    ) -> Indices:  # fmt: skip
        replica = self.replica
        if near is not None:
            keys = near.found.get(source, np.empty(0, np.int64))
            found = replica.catalogue.indices_of_keys(keys)
            assert (found >= 0).all() and wanted[found].all(), "not of this version"
            return found
        parts = []
        for query in self._queries(source, session, user, k):
            if source == SIDE:
                replica.queries.append(query.vector_V)
            rough = source == SIMILAR
            parts.append(replica.index.search(query.vector_V, query.k, wanted, rough)[0])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _liked(self, session: Session) -> tuple[Indices, int]:
        """The items that were liked last, newest first: those that are known, and how many there are."""
        liked = [entry for entry in reversed(session.history) if entry.outcomes[0] > 0][:_LIKED]
        found = self.replica.catalogue.indices_of_keys(
            np.array([entry.keys[0] for entry in liked], np.int64)
        )
        return found[found >= 0], len(liked)

    def _members(self, key: int, chance: NDArray[np.float64]) -> Indices:
        """The items of a group; of a large one those among the most popular, and others drawn at random."""
        members = self.replica.groups.of(key)
        if len(members) <= _POOL:
            return members
        if self._best is None or not self._best.holds(self.replica):
            self._best = _Known(self.replica, self._groups)
        drawn = members[(chance * len(members)).astype(np.int64)]
        return np.unique(np.concatenate([self._best.of(key), drawn]))

    def _topic(self, session: Session, wanted: Bitmap, k: int, salt: int) -> Indices:
        """Of each liked group half by popularity and half at random, by how much it is liked."""
        liked = liked_groups(session)[:_TOPICS]
        total = sum(weight for _, weight in liked)
        chance = draws(salt, np.arange(_POOL))
        parts = []
        for key, weight in liked:
            members = self._members(key, chance)
            members = members[wanted[members]]
            share = max(1, round(k * weight / total))
            if len(members) > share:
                values = self.replica.popularity.values[members]
                best = members[np.argsort(-values, kind="stable")[: share // 2]]
                parts.extend([best, _sample(members, share - len(best), salt)])
            else:
                parts.append(members)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _segment(self, session: Session, user: RequestFeatures, wanted: Bitmap, k: int) -> Indices:
        """For viewers of whom little is known: the popular items by the rate of the first label in their
        segment, smoothed by that among all. Nothing where the viewer's own past says more."""
        if len(session.history) >= _KNOWN:
            return np.empty(0, np.int64)
        replica = self.replica
        top = replica.popularity.top
        top = top[wanted[top]][:_POPULAR]
        keys = replica.catalogue.keys[top, 0]
        segment = segment_of(replica.features, user.user_U)
        counts = replica.counters.read(np.stack([keys, cross(segment, keys)]), session.last_ms)
        kinds = replica.features.kinds
        shown = counts[..., len(kinds)]  # slow
        liked = counts[..., len(kinds) + kinds.index(replica.features.main_labels[0])]
        overall = (liked[0] + 1.0) / (shown[0] + 2.0)
        rate = (liked[1] + _PRIOR * overall) / (shown[1] + _PRIOR)
        return top[np.argsort(-rate, kind="stable")[:k]]

    def _trial(self, wanted: Bitmap, k: int, salt: int, trust_after: int) -> Indices:
        newest = np.arange(max(0, len(wanted) - _NEWEST), len(wanted))
        there = wanted[newest] & (self.replica.popularity.shown[newest] < trust_after)
        return _sample(newest[there], k, salt ^ _TRIAL)

    def _popular(self, wanted: Bitmap, k: int) -> Indices:
        top = self.replica.popularity.top
        return top[wanted[top]][:k]

    def _fresh(self, wanted: Bitmap, k: int, salt: int) -> Indices:
        newest = np.arange(max(0, len(wanted) - _NEWEST), len(wanted))
        return _sample(newest[wanted[newest]], k, salt)


def liked_groups(session: Session) -> list[tuple[int, float]]:
    """The authors and tags of the recent history by how much they were liked, most first; liked ones only.

    An entry counts its outcomes (the first label whole, each other half), newer ones more.
    """
    weights: dict[int, float] = {}
    for age, entry in enumerate(reversed(session.history)):
        liked = _liking(entry) * 0.9**age
        for key in entry.keys[1:]:
            if key:
                weights[key] = weights.get(key, 0.0) + liked
    positive = [(key, weight) for key, weight in weights.items() if weight > 0]
    return sorted(positive, key=lambda pair: -pair[1])


def _liking(entry: Entry) -> float:
    if not any(entry.outcomes):
        return -0.3
    return entry.outcomes[0] + 0.5 * float(any(entry.outcomes[1:]))


def _sample(members: Indices, k: int, salt: int) -> Indices:
    """k of the members, another draw for each salt."""
    if len(members) <= k:
        return members
    return members[np.argpartition(draws(salt, members), k)[:k]]
