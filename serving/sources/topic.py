"""Items of the authors and tags that the session likes, by how much each is liked: half of them the popular
ones, half at random."""

from collections.abc import Collection
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.events.hashed_random import draws
from recsys.features.covisits import NEWER
from recsys.features.request_features import RequestFeatures
from recsys.features.session import Session
from serving.query import Query
from serving.replica.replica import Replica
from serving.sources.source import Indices, Source, salt_of, sample, too_few

_TOPICS: Final = 4
_MET: Final = 1.0  # entries that weren't liked, supposed of each group
# Items considered of a group; a larger group is sampled. By default 80 candidates come from topics, half of
# them drawn: 256 leave room for seen items.
_POOL: Final = 256
_POPULAR_MEMBERS: Final = 2048  # most popular items that are searched for members of a large group


class _PopularByGroup:
    """The groups of the most popular items; valid until popularity or groups change."""

    def __init__(self, replica: Replica) -> None:
        features = replica.features
        slots = [features.slot(f"item.{name}") for name in features.schema.groups]
        columns = [column for slot in slots for column in range(slot.start, slot.stop)]
        self._top, self._moves = replica.popularity.top, replica.groups.moves
        self._items = self._top[:_POPULAR_MEMBERS]
        self._groups = replica.catalogue.keys[self._items[:, None], np.array(columns, np.int64)]

    def is_current(self, replica: Replica) -> bool:
        return self._top is replica.popularity.top and self._moves == replica.groups.moves

    def members(self, key: int) -> Indices:
        """Popular items of a group."""
        chosen: Indices = self._items[(self._groups == key).any(1)]
        return chosen


class Topic(Source):
    """Items of liked groups. It remembers the groups of popular items of one replica."""

    def __init__(self) -> None:
        self._popular_by_group: _PopularByGroup | None = None

    def __call__(
        self, replica: Replica, query: Query, viewer: RequestFeatures, allowed: Bitmap, k: int
    ) -> Indices:
        liked = liked_groups(query.session, query.policy.config.unwanted)[:_TOPICS]
        salt = salt_of(query)
        total = sum(weight for _, weight in liked)
        quantiles = draws(salt, np.arange(_POOL))
        parts = [np.empty(0, np.int64)]
        for key, weight in liked:
            members = self.members(replica, key, quantiles)
            members, sampled = members[allowed[members]], members
            if too_few(query, members, sampled):
                members = self.members(replica, key, quantiles, allowed)
            share = max(1, round(k * weight / total))
            if len(members) > share:
                values = replica.popularity.values[members]
                best = members[np.argsort(-values, kind="stable")[: share // 2]]
                parts.extend([best, sample(members, share - len(best), salt)])
            else:
                parts.append(members)
        return np.concatenate(parts)

    def members(
        self, replica: Replica, key: int, quantiles: NDArray[np.float64], within: Bitmap | None = None
    ) -> Indices:
        """Items of a group; of a large one its most popular items, and others drawn at random."""
        members = replica.groups.members(key)
        if within is not None:
            members = members[within[members]]
        if len(members) <= _POOL:
            return members
        popular = self._popular_by_group
        if popular is None or not popular.is_current(replica):
            popular = self._popular_by_group = _PopularByGroup(replica)
        drawn = members[(quantiles * len(members)).astype(np.int64)]
        merged = np.sort(np.concatenate([popular.members(key), drawn]))
        first: Indices = merged[np.concatenate([[True], merged[1:] != merged[:-1]])]
        return first


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
    weights = [(key, liked[key] ** 2 / (weight + _MET)) for key, weight in met.items() if liked.get(key)]
    return sorted(weights, key=lambda pair: -pair[1])
