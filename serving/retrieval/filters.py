"""Filters: the items that may be shown to a user now, and how many each filter removed."""

from collections.abc import Collection

import numpy as np

from recsys.arrays.bitmap import Bitmap, Indices
from recsys.events.hashing import Id
from recsys.features.catalogue import Catalogue
from serving.query import Query
from serving.request import Candidates


def allowed_items(catalogue: Catalogue, query: Query) -> tuple[Bitmap, dict[str, int], Indices]:
    """Items that may be retrieved, removals by filter, and the living items that were removed.

    The cost depends on the session: only bits of the catalogue are copied. Where fewer items than requested
    would remain, seen ones may come again: an empty feed is worse.
    """
    request, session, allowed = query.request, query.session, catalogue.living.copy()
    gone = len(allowed) - allowed.count
    indices = map(catalogue.index_of, request.exclude_ids)
    excluded = [index for index in indices if index is not None]
    taken = {
        "excluded": allowed.take(np.array(excluded, np.int64)),
        "hidden": allowed.take(_indices_of(catalogue, session.hidden)),
        "seen": allowed.take(_indices_of(catalogue, session.seen)),
    }
    if allowed.count < request.n:
        allowed.give_back(taken["seen"])
        taken["seen"] = np.empty(0, np.int64)
    removed = {"gone": gone} | {name: len(indices) for name, indices in taken.items()}
    return allowed, removed, np.concatenate(list(taken.values()))


def _indices_of(catalogue: Catalogue, keys: Collection[int]) -> Indices:
    """Indices of the keys that are items, looked up together: there are hundreds."""
    indices = catalogue.indices_of_keys(np.fromiter(keys, np.int64, len(keys)))
    return indices[indices >= 0]


def given_items(catalogue: Catalogue, query: Query) -> tuple[list[int], dict[str, int]]:
    """Distinct indices of the caller's candidates, and counts of those left out: unknown, excluded."""
    distinct = dict.fromkeys(map(str, query.request.candidate_ids or ()))
    indices = [catalogue.index_of(item_id) for item_id in distinct]
    alive = [index for index in indices if index is not None and catalogue.alive[index]]
    excluded = _texts(query.request.exclude_ids)
    left = [index for index in alive if str(catalogue.ids[index]) not in excluded]
    return left, {"unknown": len(distinct) - len(alive), "excluded": len(alive) - len(left)}


def pinned_items(catalogue: Catalogue, query: Query, candidates: Candidates) -> dict[int, int]:
    """Catalogue indices by rank of the policy's pins that may be shown. Seen items may, too."""
    request, pinned = query.request, dict[int, int]()
    excluded = _texts(request.exclude_ids)
    for rank, item_id in query.policy.config.fixed.items():
        index = catalogue.index_of(item_id)
        if index is None or int(rank) >= request.n or not catalogue.alive[index]:
            continue
        hidden = int(catalogue.keys[index, 0]) in query.session.hidden
        missing = request.candidate_ids is not None and index not in candidates.sources
        if not hidden and not missing and str(item_id) not in excluded:
            pinned[int(rank)] = index
    return pinned


def _texts(item_ids: Collection[Id]) -> set[str]:
    return {str(item_id) for item_id in item_ids}
