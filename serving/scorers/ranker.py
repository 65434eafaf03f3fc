"""Scores by the model's predictions, and by popularity where the model gives none."""

import logging

import numpy as np
from numpy.typing import NDArray

from recsys.features.request_features import RequestFeatures
from recsys.observability.log_lines import LogThrottle
from serving.admission.deadline import UNRANKED
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates
from serving.scorers.probabilities import Floats, has_numbers, probabilities
from serving.scorers.scorer import Scorer
from serving.scorers.weighted_sum import weighted_sum

_log = logging.getLogger(__name__)


class ByPopularity(Scorer):
    """Popularity ranks: before the first step, without time to rank, or after a failure, which ``degraded``
    names."""

    def __init__(self, reason: str = UNRANKED) -> None:
        self._reason = reason

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        scores_N = popular_scores(replica.popularity.values[candidates.indices_N])
        return candidates.scored(scores_N).degrade("model" if replica.step == 0 else self._reason)


class Ranker(Scorer):
    """Predicted engagements, weighed by the policy."""

    def __init__(self) -> None:
        self._failures, self._instead = LogThrottle(), ByPopularity("rank")

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        if replica.step == 0:
            return self._instead(replica, query, candidates)
        try:
            predictions_NL = predict(replica, candidates.features)
            # Logged even if they are not numbers: they tell a broken model from a late one.
            candidates = candidates.having(predictions_NL=predictions_NL)
            if not has_numbers(predictions_NL) and len(predictions_NL):
                raise FloatingPointError("no candidate has a prediction that is a number")
        except Exception:
            self._failures.exception(_log, "ranking failed", query.now_ms / 1000)
            return self._instead(replica, query, candidates)
        return candidates.scored(weighted_sum(replica.features, predictions_NL, query.policy))


def predict(replica: Replica, features: RequestFeatures) -> Floats:
    """Probabilities of every engagement with the items of a request (N, L)."""
    return probabilities(replica.model, replica.rows, [replica.read(features)])


def popular_scores(values_N: NDArray[np.floating]) -> NDArray[np.float64]:
    """Popularity ranks in [0, 1], which replace a missing model's scores. Equal values share a rank."""
    places = np.unique(values_N, return_inverse=True)[1].reshape(-1)
    out: NDArray[np.float64] = places / max(1, int(places.max(initial=1)))
    return out
