"""Orders candidates by the choice model (recsys/model/choice_model.py): how much more or less likely than the
ranker says each is taken."""

from typing import Final

import numpy as np

from recsys.model.choice_model import log_odds, utilities
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Floats, Indices
from serving.scorers.probabilities import has_numbers
from serving.scorers.scorer import Scorer

CHOICE: Final = "choice"  # in ``Candidates.added``
_LEAST: Final = 1e-9  # score


class Chances(Scorer):
    """Predicts ``chances_N``, where there is a choice among more candidates than requested."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        weights_W = replica.model.choice.weights_W.detach().numpy()
        predictions_NL, n = candidates.predictions_NL, query.request.n
        if not has_numbers(predictions_NL) or not weights_W.any() or n >= len(candidates.indices_N):
            return candidates
        dense_NF = replica.read(candidates.features).dense_NF
        engaged_N = log_odds(predictions_NL[:, 0])
        utilities_N = utilities(weights_W, dense_NF, engaged_N, replica.model.features)
        return candidates.having(chances_N=utilities_N + np.logaddexp(0, -engaged_N))


def best_of(candidates: Candidates, n: int) -> tuple[Indices, Floats | None]:
    """Positions of the n best candidates. Where the choice model orders them, those that are worth most, and
    the logarithm of each one's worth in that of the last of these. Worth is the chance that an item is taken,
    times the score of an engagement with it."""
    chances_N, scores_N = candidates.chances_N, candidates.scores_N
    if chances_N is None:
        return np.argsort(-scores_N, kind="stable")[:n], None
    worth_N = chances_N + np.log(np.fmax(scores_N, _LEAST))
    best = np.argsort(-worth_N, kind="stable")[:n]
    return best, worth_N - worth_N[best[-1]]


def put_others_below(candidates: Candidates, best: Indices, odds_N: Floats | None) -> Candidates:
    """Adds to scores what puts all but the best below these, by their odds."""
    if odds_N is None:
        return candidates
    scores_N = candidates.scores_N
    least = np.nanmin(scores_N[best])
    below_N: Floats = least - np.abs(least) * -np.expm1(np.minimum(odds_N, 0.0))
    added_N = below_N - scores_N
    added_N[best] = 0.0
    return candidates.add_scores(CHOICE, added_N)
