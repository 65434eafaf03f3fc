"""Stages between the ranker and the draw: each adds to the scores or removes candidates, under its name."""

import numpy as np
from numpy.typing import NDArray

from recsys.config.policy_config import PolicyConfig, Rule
from serving.query import Query
from serving.ranking.selection import Cap, Floats, Mask
from serving.replica.replica import Replica
from serving.request import Candidates

NOT_INTERESTED, RULES = "not_interested", "rules"  # names in ``removed`` and ``Candidates.added``
_HIDDEN = 20  # newest hidden items whose authors and tags count
_VARIED = 4  # most liked values of a field of which ``vary`` limits the items
_OTHERS = 2.0  # likes of other values that ``vary`` supposes: after one like a value has a third of a list


def not_interested(replica: Replica, query: Query, candidates: Candidates) -> Candidates:
    """Lowers items by authors and with tags of hidden items by up to ``policy.not_interested``.

    A group weighs hidden / (hidden + liked + 1): one hide among many likes is about the item, not about
    everything that shares a tag with it. The heaviest group of an item counts. An item, or a value of its
    fields, that the viewer wants less of weighs 1.
    """
    session, penalty = query.session, query.policy.config.not_interested
    features = replica.features
    less = session.wished("less")
    if not penalty or not (session.hidden or len(less)) or not len(candidates.indices_N):
        return candidates
    wished_N = np.asarray(np.isin(candidates.features.items_NI, less).any(1), np.float64)
    newest = np.array(list(session.hidden)[-_HIDDEN:], np.int64)
    keys, hidden = _counted_values(replica, newest, features.group_columns())
    if not len(keys):
        lowered = candidates.add_scores(NOT_INTERESTED, -penalty * wished_N)
        return lowered if len(less) else candidates
    liked = features.slow_counter(features.main_labels[0])
    met = session.counters.read(keys, session.last_ms)[:, liked]
    weights = hidden / (hidden + met + 1.0)
    groups_NG = candidates.features.items_NI[:, features.group_columns()]
    places = np.searchsorted(keys, groups_NG).clip(max=len(keys) - 1)
    heaviest = np.where(keys[places] == groups_NG, weights[places], 0.0).max(1, initial=0.0)
    weights_N: Floats = np.maximum(heaviest, wished_N)
    return candidates.add_scores(NOT_INTERESTED, -penalty * weights_N)


def _counted_values(
    replica: Replica, item_keys: NDArray[np.int64], columns: list[int]
) -> tuple[NDArray[np.int64], Floats]:
    """Keys of items' values in some columns, ascending, and how many of the items have each."""
    indices = replica.catalogue.indices_of_keys(item_keys)
    keys_NC = replica.catalogue.keys[indices[indices >= 0]][:, columns]
    keys, counts = np.unique(keys_NC, return_counts=True)
    return keys[keys != 0], counts[keys != 0].astype(np.float64)


def rules(replica: Replica, query: Query, candidates: Candidates) -> Candidates:
    """Applies ``policy.rules``: boost, bury, require, limit to none. Other limits are caps of the draw."""
    if not query.policy.config.rules:
        return candidates
    added_N = np.zeros(len(candidates.indices_N))
    for rule in query.policy.config.rules:
        if rule.do in ("boost", "bury"):
            sign = 1 if rule.do == "boost" else -1
            added_N += _matches(replica, candidates, rule) * (sign * rule.amount)
    closed = replica.values.closed_by(query.policy.config.rules)
    return candidates.add_scores(RULES, added_N).keep(RULES, ~closed[candidates.indices_N])


def _matches(replica: Replica, candidates: Candidates, rule: Rule) -> Mask:
    """Marks candidates that have the rule's value in its field."""
    return replica.values.having(rule.field, rule.value, candidates.indices_N)


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
            groups_N = _matches(replica, candidates, rule).astype(np.int64)
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
    values, liked = _counted_values(replica, item_keys, columns)
    caps = []
    for number, at in enumerate(np.argsort(-liked, kind="stable")[:_VARIED].tolist(), 1):
        groups_N = (items_NI[:, columns] == values[at]).any(1).astype(np.int64)
        share = liked[at] / (liked[at] + _OTHERS)
        at_most = max(1, int(share * query.request.n))
        caps.append(Cap(f"vary {rule.field} {number}", groups_N, at_most, int(rule.amount)))
    return caps


def trust_of(shown_N: Floats, policy: PolicyConfig) -> Floats:
    """Trial weight of items: 1 where never shown, falling to 0 at ``trust_after`` showings."""
    if not policy.trust_after:
        return np.zeros(len(shown_N))
    left: Floats = np.maximum(0.0, 1.0 - shown_N / policy.trust_after)
    return left
