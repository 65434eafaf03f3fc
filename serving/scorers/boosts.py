"""Raises and lowers items by rules of the policy: ``boost`` and ``bury``."""

import numpy as np

from serving.filters.filter import RULES
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates
from serving.scorers.scorer import Scorer


class Boosts(Scorer):
    """Adds what the policy's rules say."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        rules = query.policy.config.rules
        if not rules:
            return candidates
        added_N = np.zeros(len(candidates.indices_N))
        for rule in rules:
            if rule.do in ("boost", "bury"):
                sign = 1 if rule.do == "boost" else -1
                matches_N = replica.values.having(rule.field, rule.value, candidates.indices_N)
                added_N += matches_N * (sign * rule.amount)
        return candidates.add_scores(RULES, added_N)
