"""Lists that belong to nobody: the latest, the popular, the items near an item. Pure reads of one replica.

All return (item id, score), best first. ``unwanted`` are catalogue indices that may not come, and
``category`` keeps those alone that hold it in the field ``compat.categories``.
"""

from collections.abc import Collection
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Rejected
from recsys.events.field_schema import CATEGORICAL
from recsys.events.hashing import Id, key_of
from recsys.features.feature_set import FeatureSet
from serving.compat.times import time_ms_of
from serving.replica.replica import Replica

Scored = list[tuple[Id, float]]
Indices = NDArray[np.int64]
NEWEST: Final = 2000  # looked at for the latest, as for the source ``fresh``


class Unsupported(ValueError):
    """What is asked for isn't there, and what to do instead."""


def latest(replica: Replica, n: int, unwanted: Collection[int], category: str) -> Scored:
    """Of the newest items by their coming, the newest by their own time; the score is that, in seconds, and 0
    where an item says none."""
    wanted = _wanted(replica, unwanted, category)
    start = max(0, len(wanted) - NEWEST)
    newest = np.arange(start, len(wanted))
    found = newest[wanted[newest]].tolist()
    times_s = {index: _seconds(replica.catalogue.fields[index].get("timestamp")) for index in found}
    ordered = sorted(found, key=lambda index: (-times_s[index], -index))[:n]
    return [(replica.catalogue.ids[index], times_s[index]) for index in ordered]


def popular(replica: Replica, n: int, unwanted: Collection[int], category: str) -> Scored:
    """What engages most lately: scores compare with each other, and say nothing else."""
    wanted = _wanted(replica, unwanted, category)
    top = replica.popularity.top
    top = top[wanted[top]][:n]
    return _scored(replica, top, replica.popularity.values[top])


def near(replica: Replica, item_ids: Collection[Id], n: int, category: str = "") -> Scored | None:
    """What is nearest to some items, by the product with the mean of their vectors, without themselves; None
    where none of them is known. Raises Unsupported where the replica has no index."""
    if not replica.indexed:
        raise Unsupported(
            "items near an item aren't searched with serve.retrieval_shards above 0"
        )
    known = [i for i in map(replica.catalogue.index_of, item_ids) if i is not None]
    if not known:
        return None
    query_V = replica.vectors_of(np.array(known, np.int64)).mean(0).astype(np.float32)
    wanted = _wanted(replica, known, category)
    indices, products = replica.index.search(query_V, n, wanted, rough=True)
    return _scored(replica, indices, products)


def of_category(replica: Replica, category: str, unwanted: Collection[int], most: int) -> list[Id]:
    """Candidates of a category: the popular, then the newest."""
    wanted = _wanted(replica, unwanted, category)
    top = replica.popularity.top
    top = top[wanted[top]]
    newest = np.flatnonzero(wanted.mask())[-most:][::-1]
    return [replica.catalogue.ids[i] for i in dict.fromkeys([*top.tolist(), *newest.tolist()])][
        :most
    ]


def _wanted(replica: Replica, unwanted: Collection[int], category: str) -> Bitmap:
    wanted = replica.catalogue.living.copy()
    wanted.take(np.fromiter(unwanted, np.int64, len(unwanted)))
    if category:
        wanted.take(np.flatnonzero(~_holding(replica, category)))
    return wanted


def _holding(replica: Replica, category: str) -> NDArray[np.bool_]:
    """Which items hold the category, by the keys that are made of the field."""
    field = replica.config.compat.categories
    if not has_categories(replica.features, field):
        raise Unsupported(
            f"categories need the field {field!r} as a categorical feature of items; set compat.categories "
            "to one that is"
        )
    grouped = field in replica.features.schema.groups
    slot = replica.features.slot(f"item.{field}" if grouped else "content")
    keys = replica.catalogue.keys[:, slot.start : slot.stop]
    holds: NDArray[np.bool_] = (keys == key_of(f"item.{field}", category)).any(1)
    return holds


def has_categories(features: FeatureSet, field: str) -> bool:
    return field in features.schema.names("item", CATEGORICAL)


def _scored(replica: Replica, indices: Indices, scores: NDArray[np.floating]) -> Scored:
    ids = replica.catalogue.ids
    return [(ids[i], float(s)) for i, s in zip(indices.tolist(), scores.tolist(), strict=True)]


def _seconds(timestamp: object) -> float:
    try:
        return time_ms_of(timestamp, "timestamp", 2**62) / 1000
    except Rejected:
        return 0.0
