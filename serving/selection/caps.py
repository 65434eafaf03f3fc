"""Caps of the draw: on items of one author, and on what rules of the policy limit."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from recsys.config.policy_config import Rule
from serving.query import Query
from serving.replica.replica import Replica
from serving.replica.value_index import counted_values
from serving.request import Candidates
from serving.selection.sampling import Cap

_VARIED: Final = 4  # most liked values of a field of which ``vary`` limits the items
# Likes of other values that ``vary`` supposes: after one like a value has a third of a list.
_OTHERS: Final = 2.0


def caps_of(replica: Replica, query: Query, candidates: Candidates) -> tuple[Cap, ...]:
    """Caps on what rules limit, and on the items of one author unless the caller gave the candidates."""
    caps = []
    policy, features = query.policy.config, replica.features
    items_NI = candidates.features.items_NI
    given = query.request.candidate_ids is not None
    if features.schema.groups and policy.per_author and not given:
        column = features.slot(f"item.{features.schema.groups[0]}").start
        caps.append(Cap("per_author", items_NI[:, column], policy.per_author))
    for rule in policy.rules:
        if rule.do == "limit" and rule.amount >= 1:
            name = f"limit {rule.field}={rule.value}"
            groups_N = replica.values.having(rule.field, rule.value, candidates.indices_N).astype(np.int64)
            caps.append(Cap(name, groups_N, int(rule.amount)))
        elif rule.do == "vary" and not given and rule.field in features.schema.groups:
            caps += _varied(replica, query, items_NI, rule)
    return tuple(caps)


def _varied(replica: Replica, query: Query, items_NI: NDArray[np.int64], rule: Rule) -> list[Cap]:
    """Caps on the values of a field that the newest history likes most. Of ``n`` items, liked / (liked + 2)
    may have a value: a third after one like, five of six after ten."""
    labels, weights = replica.features.schema.labels, query.policy.config.weights
    weights_L = np.array([weights.get(label, 0.0) for label in labels])
    history = [e for e in query.session.history if np.dot(weights_L, e.outcomes) > 0]
    slot = replica.features.slot(f"item.{rule.field}")
    columns = list(range(slot.start, slot.stop))
    item_keys = np.array([entry.keys[0] for entry in history], np.int64)
    values, liked = counted_values(replica.catalogue, item_keys, columns)
    caps = []
    for number, at in enumerate(np.argsort(-liked, kind="stable")[:_VARIED].tolist(), 1):
        groups_N = (items_NI[:, columns] == values[at]).any(1).astype(np.int64)
        share = liked[at] / (liked[at] + _OTHERS)
        at_most = max(1, int(share * query.request.n))
        caps.append(Cap(f"vary {rule.field} {number}", groups_N, at_most, int(rule.amount)))
    return caps
