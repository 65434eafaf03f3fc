"""Filters: the items that may be shown to a user now, and how many each filter removed."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap, Indices
from recsys.config.safety_config import SafetyRule
from recsys.events.field_schema import spellings_of
from recsys.events.hashing import Id, key_of
from recsys.features.catalogue import Catalogue
from recsys.features.session import Session
from serving.query import Query
from serving.ranking.stages import RULES
from serving.replica.replica import Replica
from serving.request import Candidates
from serving.retrieval.item_filters import filter_mask

Mask = NDArray[np.bool_]
# Reasons why a candidate of the caller isn't in the list. Closed: by a wish of the viewer, a safety rule, or
# a rule of the policy.
UNKNOWN, EXCLUDED, FILTERED, CLOSED = "unknown", "excluded", "filtered", "closed"
SAFETY = "safety"  # name in ``removed``
CHOSEN = (FILTERED, EXCLUDED, "hidden", "blocked")  # names of what the viewer's side removes


def allowed_items(replica: Replica, query: Query, by_rules: bool = True) -> tuple[Bitmap, dict[str, int]]:
    """Items that may be retrieved, and removals by filter: of all that no list may have, whatever the score.

    The cost depends on the session and the rules: only bits of the catalogue are copied. Where fewer items
    than requested would remain, seen ones may come again: an empty feed is worse. ``by_rules``: without what
    safety rules and the policy's close.
    """
    catalogue = replica.catalogue
    request, session, allowed = query.request, query.session, catalogue.living.copy()
    removed = {"gone": len(allowed) - allowed.count}
    indices = map(catalogue.index_of, request.exclude_ids)
    excluded = [index for index in indices if index is not None]
    if request.filters:
        removed[FILTERED] = allowed.intersect(Bitmap.of(filter_mask(replica, request.filters)))
    removed[EXCLUDED] = len(allowed.take(np.array(excluded, np.int64)))
    removed["hidden"] = len(allowed.take(_indices_of(catalogue, session.hidden)))
    if session.wishes:
        removed["blocked"] = len(allowed.take(_blocked_items(replica, session)))
    for rule in _rules_that_hold(replica, query) if by_rules else ():
        unsafe = replica.values.items(rule.field, rule.value)
        removed[SAFETY] = removed.get(SAFETY, 0) + allowed.subtract(unsafe)
    policies = [policy for _, policy in query.policy.rivals] or [query.policy]
    if by_rules and all(policy.config.rules for policy in policies):
        closed = [replica.values.closed_by(policy.config.rules) for policy in policies]
        for other in closed[1:]:
            closed[0].intersect(other)
        removed[RULES] = allowed.subtract(closed[0])
    seen = allowed.take(_indices_of(catalogue, session.seen))
    if allowed.count < request.n:
        allowed.give_back(seen)
        seen = seen[:0]
    return allowed, removed | {"seen": len(seen)}


def _blocked_items(replica: Replica, session: Session) -> Indices:
    """Blocked and muted items, alone or by a value of a group. ``viewer_limits`` has other values."""
    keys = session.wished("block", "mute")
    if not len(keys):
        return np.empty(0, np.int64)
    groups = [replica.groups.members(key) for key in keys.tolist()]
    return np.unique(np.concatenate([_indices_of(replica.catalogue, keys), *groups]))


def viewer_limits(replica: Replica, query: Query, indices: Indices) -> dict[str, Mask]:
    """Items (N,) that this viewer must not see, by reason: their own wishes, and safety rules. Muted items
    are allowed where the caller names them."""
    catalogue, masks = replica.catalogue, dict[str, Mask]()
    named = query.request.candidate_ids is not None
    keys = query.session.wished("block") if named else query.session.wished("block", "mute")
    if len(keys):
        beyond = [replica.surplus.members(key) for key in keys.tolist()]  # no column has the value
        has_key = np.isin(catalogue.keys[indices], keys).any(1)
        masks["blocked"] = np.asarray(has_key | np.isin(indices, np.concatenate(beyond)))
    for rule in _rules_that_hold(replica, query):
        unsafe = replica.values.items(rule.field, rule.value)[indices]
        masks[SAFETY] = masks.get(SAFETY, False) | unsafe
    return masks


def _rules_that_hold(replica: Replica, query: Query) -> list[SafetyRule]:
    """Safety rules that hold for this viewer."""
    return [rule for rule in replica.config.safety.rules if _applies(rule, query)]


def _applies(rule: SafetyRule, query: Query) -> bool:
    """Whether a rule holds for a viewer. Where the viewer isn't known, it does."""
    if rule.unless and all(_is(query, name, value, False) for name, value in rule.unless.items()):
        return False
    return all(_is(query, name, value, True) for name, value in rule.when.items())


def _is(query: Query, name: str, value: str, unknown: bool) -> bool:
    """Whether the request's context, or else the viewer's profile, has a value."""
    texts = spellings_of(value)
    if name in query.request.context:
        return str(query.request.context[name]) in texts
    has_value = any(key_of(f"user.{name}", text) in query.session.profile for text in texts)
    return has_value if query.viewer_known else unknown


def _indices_of(catalogue: Catalogue, keys: Collection[int]) -> Indices:
    """Indices of the keys that are items, looked up together: there are hundreds."""
    indices = catalogue.indices_of_keys(np.fromiter(keys, np.int64, len(keys)))
    return indices[indices >= 0]


def given_items(replica: Replica, query: Query) -> tuple[list[int], dict[Id, str]]:
    """Distinct indices of the caller's candidates, and for each one left out the reason."""
    catalogue, excluded = replica.catalogue, {*map(str, query.request.exclude_ids)}
    distinct = {str(item_id): item_id for item_id in query.request.candidate_ids or ()}
    indices = {text: catalogue.index_of(text) for text in distinct}
    alive = {text: i for text, i in indices.items() if i is not None and catalogue.alive[i]}
    passes = filter_mask(replica, query.request.filters, np.array([*alive.values()], np.int64))
    filtered = {text for text, passed in zip(alive, passes, strict=True) if not passed}
    given, left_out = list[int](), dict[Id, str]()
    for text, item_id in distinct.items():
        if text not in alive:
            left_out[item_id] = UNKNOWN
        elif text in excluded:
            left_out[item_id] = EXCLUDED
        elif text in filtered:
            left_out[item_id] = FILTERED
        else:
            given.append(alive[text])
    return given, left_out


def pinned_items(replica: Replica, query: Query, candidates: Candidates) -> dict[int, int]:
    """Catalogue indices by rank of the policy's pins that may be shown. Seen items may, too."""
    if not query.policy.config.fixed:
        return {}
    catalogue = replica.catalogue
    request, pinned = query.request, dict[int, int]()
    excluded = {*map(str, request.exclude_ids)}
    for rank, item_id in query.policy.config.fixed.items():
        index = catalogue.index_of(item_id)
        if index is None or int(rank) >= request.n or not catalogue.alive[index]:
            continue
        hidden = int(catalogue.keys[index, 0]) in query.session.hidden
        missing = request.candidate_ids is not None and index not in candidates.indices_N
        if not hidden and not missing and str(item_id) not in excluded:
            pinned[int(rank)] = index
    indices = np.array([*pinned.values()], np.int64)
    closed = ~filter_mask(replica, request.filters, indices)
    for limited in viewer_limits(replica, query, indices).values():
        closed |= limited
    return {rank: index for (rank, index), no in zip(pinned.items(), closed, strict=True) if not no}
