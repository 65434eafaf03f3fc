"""What another policy would have drawn, rank by rank, along a list that was served: from the same candidates.

The answer is made again (serving/reconstruction/reconstructed_answer.py), so candidates, predictions and session are those of then.
Both policies then go along the list as it was served, and at each rank both chances of every candidate are
known exactly. Pure.
"""

# N candidates, R ranks asked for, L labels

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.events.event_types import Impression
from recsys.features.session import Session
from serving.pipeline import Pipeline
from serving.ranking.pinned_items import fixed
from serving.ranking.selection import Ballot, Floats, Indices
from serving.ranking.slate_propensities import chances_along
from serving.reconstruction.reconstructed_answer import request_of
from serving.request import Ranked, Request

NO_CHANCE: Final = 1e-9  # a chance below is none: no log is long enough to have met it


@dataclass(frozen=True)
class Judged:
    """One served list as the target would weigh it (experiments/statistics/off_policy.py says what each part is).

    ``said_R`` and ``expected_R`` are of an item that is shown. ``off``: the largest difference between a
    propensity on the log and the one that was found again, which is 0.
    """

    ratios_R: Floats
    said_R: Floats
    expected_R: Floats
    unsupported_R: Floats
    ended_R: NDArray[np.bool_]
    off: float


def judged(
    pipeline: Pipeline,
    impression: Impression,
    session: Session,
    ranked: Ranked,
    logged: Policy,
    target: Policy,
    reward: Mapping[str, float],
) -> Judged:
    """``pipeline`` stands at the impression's stamp, and ``ranked`` are the candidates of the answer as it
    was made again there. ``reward``: weights of labels."""
    request, catalogue = request_of(impression), pipeline.replica.catalogue
    places = {index: place for place, index in enumerate(ranked.indices)}
    found = [catalogue.index_of(its.item_id) for its in impression.items]
    positions_R = np.array([places[index] for index in found if index is not None], np.int64)
    mine, mine_ends = _chances(pipeline, request, session, ranked, logged, positions_R)
    theirs, theirs_end = _chances(pipeline, request, session, ranked, target, positions_R)
    said_N = _said(pipeline, ranked, reward)
    shown, ranks = np.arange(len(positions_R)), max(request.n, len(positions_R))
    propensities_R = np.array([its.propensity for its in impression.items])
    ratios_R, said_R, ended_R = np.ones(ranks), np.zeros(ranks), np.zeros(ranks, np.bool_)
    expected_R, unsupported_R = np.zeros(ranks), np.zeros(ranks)
    count = len(shown)
    ratios_R[:count], over_R = ratios_along(theirs, positions_R, propensities_R)
    ended_R[:count] = over_R
    said_R[:count] = np.where(over_R, 0.0, said_N[positions_R])
    expected_R[:count] = theirs @ said_N
    unsupported_R[:count] = np.where(mine < NO_CHANCE, theirs, 0.0).sum(1)
    if theirs_end and not mine_ends and count < ranks:
        unsupported_R[count] = (
            1.0  # the target would have gone on where the log's policy had nothing left
        )
    off = float(np.abs(mine[shown, positions_R] - propensities_R).max(initial=0.0))
    return Judged(ratios_R, said_R, expected_R, unsupported_R, ended_R, off)


def ratios_along(
    theirs_RN: Floats, positions_R: Indices, propensities_R: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """The ratio at each rank of a list, of the target's chances along it; and where the target's own list has
    ended. It does so for sure whatever comes below on the log, so the ratio is 1 there."""
    ended_R: NDArray[np.bool_] = theirs_RN.sum(1) == 0
    chances_R = theirs_RN[np.arange(len(positions_R)), positions_R]
    return np.where(ended_R, 1.0, chances_R / propensities_R), ended_R


def same_candidates(logged: Policy, target: Policy) -> bool:
    """Whether the policies look for the same candidates, and fix the same items."""
    one, other = logged.config, target.config
    return (one.sources, one.trust_after, one.fixed) == (
        other.sources,
        other.trust_after,
        other.fixed,
    )


def _chances(
    pipeline: Pipeline,
    request: Request,
    session: Session,
    ranked: Ranked,
    policy: Policy,
    positions_R: np.ndarray,
) -> tuple[Floats, bool]:
    its, _ = pipeline.under(policy, ranked, session)
    pinned = fixed(pipeline.replica.catalogue, request, session, policy.config, set(ranked.indices))
    ballot: Ballot = pipeline.ballot(request, policy, its, pinned)
    return chances_along(ballot, positions_R, request.n)


def _said(pipeline: Pipeline, ranked: Ranked, reward: Mapping[str, float]) -> Floats:
    """What the ranker said of each candidate's reward, (N,); 0 where it said nothing."""
    said_N = np.zeros(len(ranked.indices))
    if ranked.predictions_NL is None:
        return said_N
    for column, label in enumerate(pipeline.replica.features.schema.labels):
        said_N += reward.get(label, 0.0) * ranked.predictions_NL[:, column]
    out: Floats = np.nan_to_num(said_N)
    return out
