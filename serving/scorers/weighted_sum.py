"""Scores by a policy: the weighted sum of predicted engagements."""

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.features.feature_set import FeatureSet
from recsys.model.ranker import watch_seconds
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Floats
from serving.scorers.choice import best_of, put_others_below
from serving.scorers.probabilities import has_numbers
from serving.scorers.scorer import Scorer


class WeightedSum(Scorer):
    """The query's policy on predictions that were made, as for another policy."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        scores_N = candidates.scores_N
        if has_numbers(candidates.predictions_NL):
            scores_N = weighted_sum(replica.features, candidates.predictions_NL, query.policy)
        scored = candidates.scored(scores_N)
        return put_others_below(scored, *best_of(scored, query.request.n))


def weighted_sum(features: FeatureSet, predictions_NL: NDArray[np.float32], policy: Policy) -> Floats:
    """The weighted sum of predicted engagements; watch time counts in minutes."""
    labels, weights = features.schema.labels, policy.config.weights
    total = np.zeros(len(predictions_NL))
    for k, label in enumerate(labels):
        total += weights.get(label, 0.0) * predictions_NL[:, k]
    minutes = watch_seconds(predictions_NL[:, len(labels)]) / 60.0
    out: Floats = total + weights.get("watch", 0.0) * minutes
    return out
