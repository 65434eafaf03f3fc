"""Stages between the ranker and the draw: each adds to the scores or removes candidates, under its name."""

import numpy as np
from numpy.typing import NDArray

from recsys.config.policy_config import PolicyConfig, Rule
from recsys.events.hashing import key_of
from recsys.features.session import Session
from serving.query import Query
from serving.ranking.selection import Cap, Floats, Mask
from serving.replica.replica import Replica
from serving.request import Candidates

NOT_INTERESTED, RULES = "not_interested", "rules"  # names in ``removed`` and ``Candidates.added``
_HIDDEN = 20  # newest hidden items whose authors and tags count


def not_interested(replica: Replica, query: Query, candidates: Candidates) -> Candidates:
    """Lowers items by authors and with tags of hidden items by up to ``policy.not_interested``.

    A group weighs hidden / (hidden + liked + 1): one hide among many likes is about the item, not about
    everything that shares a tag with it. The heaviest group of an item counts. An item, or a value of its
    fields, that the viewer wants less of weighs 1.
    """
    session, penalty = query.session, query.policy.config.not_interested
    less = session.wished("less")
    if not penalty or not (session.hidden or len(less)) or not candidates.sources:
        return candidates
    wished_N = np.asarray(np.isin(candidates.features.items_NI, less).any(1), np.float64)
    keys, hidden = _hidden_groups(replica, session)
    if not len(keys):
        return (
            candidates.add_scores(NOT_INTERESTED, -penalty * wished_N) if len(less) else candidates
        )
    features = replica.features
    liked = features.slow_counter(features.main_labels[0])
    met = session.counters.read(keys, session.last_ms)[:, liked]
    weights = hidden / (hidden + met + 1.0)
    groups_NG = candidates.features.items_NI[:, features.group_columns()]
    places = np.searchsorted(keys, groups_NG).clip(max=len(keys) - 1)
    heaviest = np.where(keys[places] == groups_NG, weights[places], 0.0).max(1, initial=0.0)
    weights_N: Floats = np.maximum(heaviest, wished_N)
    return candidates.add_scores(NOT_INTERESTED, -penalty * weights_N)


def _hidden_groups(replica: Replica, session: Session) -> tuple[NDArray[np.int64], Floats]:
    """Group keys of the newest hidden items, ascending, and how many of these items have each."""
    catalogue, columns = replica.catalogue, replica.features.group_columns()
    newest = catalogue.indices_of_keys(np.array(list(session.hidden)[-_HIDDEN:], np.int64))
    keys, counts = np.unique(catalogue.keys[newest[newest >= 0]][:, columns], return_counts=True)
    return keys[keys != 0], counts[keys != 0].astype(np.float64)


def rules(_: Replica, query: Query, candidates: Candidates) -> Candidates:
    """Applies ``policy.rules``: boost, bury, require, limit to none. Other limits are caps of the draw."""
    if not query.policy.config.rules:
        return candidates
    added_N = np.zeros(len(candidates.sources))
    kept_N = np.ones(len(candidates.sources), np.bool_)
    required: dict[str, Mask] = {}
    for rule in query.policy.config.rules:
        matches_N = _matches(candidates, rule)
        if rule.do == "require":
            required[rule.field] = matches_N | required.get(rule.field, False)
        elif rule.do == "limit":
            kept_N &= ~matches_N if rule.amount < 1 else True
        else:
            added_N += matches_N * (rule.amount if rule.do == "boost" else -rule.amount)
    for matches_N in required.values():
        kept_N &= matches_N
    return candidates.add_scores(RULES, added_N).keep(RULES, kept_N)


def _matches(candidates: Candidates, rule: Rule) -> Mask:
    """Marks candidates that have the rule's value in its field, by the keys that the ranker reads."""
    key = key_of(f"item.{rule.field}", rule.value)
    matches_N: Mask = (candidates.features.items_NI == key).any(1)
    return matches_N


def caps_of(replica: Replica, query: Query, candidates: Candidates) -> tuple[Cap, ...]:
    """Caps on what rules limit, and on the items of one author unless the caller gave the candidates."""
    caps = []
    policy, features = query.policy.config, replica.features
    items_NI = candidates.features.items_NI
    if features.schema.groups and policy.per_author and query.request.candidate_ids is None:
        column = features.slot(f"item.{features.schema.groups[0]}").start
        caps.append(Cap("per_author", items_NI[:, column], policy.per_author))
    for rule in policy.rules:
        if rule.do == "limit" and rule.amount >= 1:
            name = f"limit {rule.field}={rule.value}"
            groups_N = _matches(candidates, rule).astype(np.int64)
            caps.append(Cap(name, groups_N, int(rule.amount)))
    return tuple(caps)


def trust_of(shown_N: Floats, policy: PolicyConfig) -> Floats:
    """Trial weight of items: 1 where never shown, falling to 0 at ``trust_after`` showings."""
    if not policy.trust_after:
        return np.zeros(len(shown_N))
    left: Floats = np.maximum(0.0, 1.0 - shown_N / policy.trust_after)
    return left
