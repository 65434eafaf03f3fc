"""Candidates that are named: those of the caller, and items that the policy pins to ranks."""

from collections import Counter
from typing import Final

import numpy as np

from serving.filters.filter import EXCLUDED, UNKNOWN, Filters, close_by
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Indices

GIVEN: Final = "given"
FIXED: Final = "fixed"


def given_items(filters: Filters, replica: Replica, query: Query, viewer: Candidates) -> Candidates:
    """The caller's candidates, each once, without unknown ones and those that a filter closes: ``left_out``
    has the first reason."""
    catalogue = replica.catalogue
    distinct = {str(item_id): item_id for item_id in query.request.candidate_ids or ()}
    places = {text: catalogue.index_of(text) for text in distinct}
    indices = {text: i for text, i in places.items() if i is not None and catalogue.alive[i]}
    indices_N = np.array([*indices.values()], np.int64)
    candidates = viewer.listed(indices_N, np.ones_like(indices_N), GIVEN)
    reasons = dict.fromkeys(distinct.keys() - indices.keys(), UNKNOWN)
    for name, each in filters.items():
        before, candidates = candidates, close_by({name: each}, replica, query, candidates)
        closed_N = before.open_N & ~candidates.open_N
        reasons |= {text: name for text, closed in zip(indices, closed_N.tolist(), strict=True) if closed}
    left_out = {item_id: reasons[text] for text, item_id in distinct.items() if text in reasons}
    removed = {UNKNOWN: 0, EXCLUDED: 0} | Counter(left_out.values())
    indices_N = indices_N[candidates.open_N]
    given = viewer.listed(indices_N, np.ones_like(indices_N), GIVEN)
    return given.having(left_out=left_out, removed=removed)


def pinned_items(filters: Filters, replica: Replica, query: Query, candidates: Candidates) -> dict[int, int]:
    """Catalogue indices by rank of the policy's pins that may be shown. Seen items may, too."""
    if not query.policy.config.fixed:
        return {}
    catalogue, pinned = replica.catalogue, dict[int, int]()
    given = query.request.candidate_ids is not None
    for rank, item_id in query.policy.config.fixed.items():
        index = catalogue.index_of(item_id)
        if index is None or int(rank) >= query.request.n or not catalogue.alive[index]:
            continue
        if not given or index in candidates.indices_N:
            pinned[int(rank)] = index
    indices = np.array([*pinned.values()], np.int64)
    pins = close_by(filters, replica, query, candidates.listed(indices, np.zeros_like(indices)))
    is_open = dict(zip(pinned, pins.open_N.tolist(), strict=True))
    return {rank: index for rank, index in pinned.items() if is_open[rank]}


def with_pinned(candidates: Candidates, pinned: dict[int, int]) -> Candidates:
    """The candidates with pinned items, whose only source is ``FIXED``."""
    if not pinned:
        return candidates
    indices, names = np.array([*pinned.values()], np.int64), candidates.source_names
    new: Indices = indices[~np.isin(indices, candidates.indices_N)]
    indices_N = np.concatenate([candidates.indices_N, new])
    sources_N = np.concatenate([candidates.sources_N, np.zeros_like(new)])
    sources_N[np.isin(indices_N, indices)] = 1 << len(names)
    return candidates.listed(indices_N, sources_N, *names, FIXED).having(pinned=pinned)
