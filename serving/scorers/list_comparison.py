"""Scores of the first candidates as a list: compared with each other, where the feature set declares this."""

from recsys.config.policy_config import MAX_LIST_LENGTH
from serving.query import Query
from serving.query_features import QueryFeatures
from serving.replica.replica import Replica
from serving.request import Candidates
from serving.scorers.choice import best_of, put_others_below
from serving.scorers.probabilities import has_numbers
from serving.scorers.ranker import predict
from serving.scorers.scorer import Scorer
from serving.scorers.weighted_sum import weighted_sum


class ListComparison(Scorer):
    """Predicts again for the candidates that are best so far, by the choice model if it orders them."""

    def __init__(self, features: QueryFeatures) -> None:
        self._features = features

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        predictions_NL = candidates.predictions_NL
        if not has_numbers(predictions_NL):
            return candidates
        best, odds_N = best_of(candidates, query.request.n)
        if replica.model.features.list_columns:
            listed = best[:MAX_LIST_LENGTH]  # comparing takes time in n²
            predictions_NL = predictions_NL.copy()
            predictions_NL[listed] = predict(replica, self._features.listed(candidates.features, listed))
            candidates = candidates.having(predictions_NL=predictions_NL)
        scored = candidates.scored(weighted_sum(replica.features, predictions_NL, query.policy))
        return put_others_below(scored, best, odds_N)
