"""Computes lists that don't depend on a user: latest, popular, near an item. Pure reads of one replica.

Each returns (item id, score), best first. ``excluded`` holds catalogue indices; ``category`` restricts a list
to the items that have it in the field ``compat.categories``.
"""

from collections.abc import Collection
from typing import Final

import numpy as np
from numpy.typing import NDArray

from examples.gorse_and_metarank.times import time_ms_of
from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Rejected
from recsys.events.field_schema import CATEGORICAL
from recsys.events.hashing import Id, key_of
from serving.replica.replica import Replica

Scored = list[tuple[Id, float]]
Indices = NDArray[np.int64]
NEWEST: Final = 2000  # newest items examined for the latest, as for the source ``fresh``


class Unsupported(ValueError):
    """The request has no counterpart here; the message names the alternative."""


def latest(replica: Replica, n: int, excluded: Collection[int], category: str) -> Scored:
    """Newest items by their timestamps in seconds (0 without one), among the newest by arrival."""
    allowed = _allowed(replica, excluded, category)
    newest = np.arange(max(0, len(allowed) - NEWEST), len(allowed))
    indices = newest[allowed[newest]].tolist()
    times_s = {i: _seconds(replica.catalogue.fields[i].get("timestamp")) for i in indices}
    ordered = sorted(indices, key=lambda index: (-times_s[index], -index))[:n]
    return [(replica.catalogue.ids[index], times_s[index]) for index in ordered]


def popular(replica: Replica, n: int, excluded: Collection[int], category: str) -> Scored:
    """Items with the most recent engagement. Scores are comparable with each other only."""
    top = replica.popularity.top
    top = top[_allowed(replica, excluded, category)[top]][:n]
    return _scored(replica, top, replica.popularity.values[top])


def near(replica: Replica, item_ids: Collection[Id], n: int, category: str = "") -> Scored | None:
    """Items nearest to the given ones, without these, by the dot product with the mean of their vectors; None
    if none of them exists. Raises Unsupported if the replica has no index."""
    if not replica.indexed:
        raise Unsupported(
            "items near an item can't be searched with serve.retrieval_shards above 0"
        )
    given = [i for i in map(replica.catalogue.index_of, item_ids) if i is not None]
    if not given:
        return None
    query_V = replica.vectors_of(np.array(given, np.int64)).mean(0).astype(np.float32)
    allowed = _allowed(replica, given, category)
    indices, products = replica.index.search(query_V, n, allowed, rough=True)
    return _scored(replica, indices, products)


def category_candidates(
    replica: Replica, category: str, excluded: Collection[int], most: int
) -> list[Id]:
    """Items of a category: the popular first, then the newest."""
    allowed = _allowed(replica, excluded, category)
    top = replica.popularity.top
    newest = np.flatnonzero(allowed.mask())[-most:][::-1]
    indices = dict.fromkeys([*top[allowed[top]].tolist(), *newest.tolist()])
    return [replica.catalogue.ids[i] for i in indices][:most]


def _allowed(replica: Replica, excluded: Collection[int], category: str) -> Bitmap:
    allowed = replica.catalogue.living.copy()
    allowed.take(np.fromiter(excluded, np.int64, len(excluded)))
    if category:
        allowed.take(np.flatnonzero(~_in_category(replica, category)))
    return allowed


def _in_category(replica: Replica, category: str) -> NDArray[np.bool_]:
    """Mask of the items in a category, by the keys of the field."""
    field = replica.config.compat.categories
    if field not in replica.features.schema.names("item", CATEGORICAL):
        raise Unsupported(
            f"categories need the field {field!r} as a categorical feature of items; set compat.categories "
            "to such a field"
        )
    grouped = field in replica.features.schema.groups
    slot = replica.features.slot(f"item.{field}" if grouped else "content")
    keys = replica.catalogue.keys[:, slot.start : slot.stop]
    mask: NDArray[np.bool_] = (keys == key_of(f"item.{field}", category)).any(1)
    return mask


def _scored(replica: Replica, indices: Indices, scores: NDArray[np.floating]) -> Scored:
    ids = replica.catalogue.ids
    return [(ids[i], float(s)) for i, s in zip(indices.tolist(), scores.tolist(), strict=True)]


def _seconds(timestamp: object) -> float:
    try:
        return time_ms_of(timestamp, "timestamp", 2**62) / 1000
    except Rejected:
        return 0.0
