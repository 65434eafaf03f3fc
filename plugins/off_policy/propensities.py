"""Propensities of another policy along a served list, rank by rank, from the same candidates.

The answer is reconstructed (plugins/answer_explanation/reconstructed_answer.py), so candidates, predictions
and session are those of its time. Both policies then walk along the served list, and at each rank both
probabilities of every candidate are exact. Pure.
"""

# N candidates, R requested ranks, L labels

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from experiments.assignment.policy import Policy
from recsys.config.policy_config import PolicyConfig
from serving.pipeline import Pipeline
from serving.query import Query
from serving.request import Answer, Candidates
from serving.selection.sampling import Floats, Indices, SamplingInput
from serving.selection.selector import sampling_input
from serving.selection.slate_propensities import PinnedRanks, SlateWalk

NO_CHANCE: Final = 1e-9  # a lower probability counts as none: no log is long enough to contain it


@dataclass(frozen=True)
class CounterfactualList:
    """One served list as the target policy weighs it (parts as in plugins/off_policy/estimates.py).

    ``predicted_R`` and ``expected_R``: predicted rewards, of the shown item and as the target expects.
    ``off``: largest difference between a logged and a recomputed propensity, 0 where all is well.
    """

    ratios_R: Floats
    predicted_R: Floats
    expected_R: Floats
    unsupported_R: Floats
    ended_R: NDArray[np.bool_]
    off: float


def counterfactual(
    pipeline: Pipeline, query: Query, answer: Answer, target: Policy, reward: Mapping[str, float]
) -> CounterfactualList:
    """Weighs a served list. ``query`` and ``answer`` are reconstructed, and equal the log; ``pipeline`` has
    their stamp. ``reward``: weights of labels."""
    candidates, impression = answer.candidates, answer.impression
    assert candidates is not None and candidates.slate is not None
    positions_R = candidates.slate.positions
    logged_RN, logged_goes_on = _probabilities(pipeline, query, candidates)
    target_query = replace(query, policy=target)
    target_RN, target_goes_on = _probabilities(pipeline, target_query, candidates)
    reward_N = _predicted_reward(pipeline, candidates, reward)
    count, ranks = len(positions_R), max(query.request.n, len(positions_R))
    propensities_R = np.array([item.propensity for item in impression.items])
    ratios_R, predicted_R, ended_R = np.ones(ranks), np.zeros(ranks), np.zeros(ranks, np.bool_)
    expected_R, unsupported_R = np.zeros(ranks), np.zeros(ranks)
    ratios_R[:count], over_R = propensity_ratios(target_RN, positions_R, propensities_R)
    ended_R[:count] = over_R
    predicted_R[:count] = np.where(over_R, 0.0, reward_N[positions_R])
    expected_R[:count] = target_RN @ reward_N
    unsupported_R[:count] = np.where(logged_RN < NO_CHANCE, target_RN, 0.0).sum(1)
    if target_goes_on and not logged_goes_on and count < ranks:
        unsupported_R[count] = 1.0  # the logging policy had nothing left where the target goes on
    recomputed_R = logged_RN[np.arange(count), positions_R]
    off = float(np.abs(recomputed_R - propensities_R).max(initial=0.0))
    return CounterfactualList(ratios_R, predicted_R, expected_R, unsupported_R, ended_R, off)


def propensity_ratios(
    target_RN: Floats, positions_R: Indices, propensities_R: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """Ratio at each rank of the target's probability to the propensity; and the ranks at which the target's
    own list has ended. It ends there whatever the log shows below, so the ratio is 1."""
    ended_R: NDArray[np.bool_] = target_RN.sum(1) == 0
    probabilities_R = target_RN[np.arange(len(positions_R)), positions_R]
    return np.where(ended_R, 1.0, probabilities_R / propensities_R), ended_R


def same_candidates(logged: Policy, target: Policy) -> bool:
    """Whether the policies retrieve the same candidates and pin the same items."""
    one, other = (
        # What is unwanted is no like, by which the source `topic` chooses.
        (c.sources, c.trust_after, c.fixed, {*c.unwanted}, excluding_rules(c))
        for c in (logged.config, target.config)
    )
    return one == other


def excluding_rules(config: PolicyConfig) -> set[tuple[str, str, str]]:
    """Rules that exclude items before retrieval, which then fills the places with others."""
    return {(rule.do, rule.field, rule.value) for rule in config.rules if rule.excludes}


def probabilities_along(given: SamplingInput, positions_R: Indices, n: int) -> tuple[Floats, bool]:
    """Probability (R, N) of every candidate at each rank of a list, given the items above it; and whether the
    policy would have gone on, of ``n`` ranks, after the last item of the list."""
    walk, pinned = SlateWalk(given, n), PinnedRanks(given, n)
    out_RN = np.zeros((len(positions_R), len(given)))
    for rank, position in enumerate(positions_R.tolist()):
        pinned_position = pinned.pop(rank, walk.ended)
        if pinned_position >= 0:
            out_RN[rank, pinned_position] = 1.0
        elif not walk.ended:
            out_RN[rank] = walk.step(positions_R[:rank]).total_N
            walk.place(position)
    more = len(positions_R) < min(n, len(given)) and (len(pinned) > 0 or not walk.ended)
    return out_RN, more


def _probabilities(pipeline: Pipeline, query: Query, candidates: Candidates) -> tuple[Floats, bool]:
    assert candidates.slate is not None
    pinned = pipeline.pinned(query, candidates)
    adjusted = pipeline.adjusted(query, replace(candidates, pinned=pinned))
    given = sampling_input(pipeline.replica, query, adjusted)
    return probabilities_along(given, candidates.slate.positions, query.request.n)


def _predicted_reward(pipeline: Pipeline, candidates: Candidates, reward: Mapping[str, float]) -> Floats:
    """Predicted reward of each candidate (N,); 0 without a prediction."""
    reward_N = np.zeros(len(candidates.indices_N))
    if candidates.predictions_NL is None:
        return reward_N
    for column, label in enumerate(pipeline.replica.features.schema.labels):
        reward_N += reward.get(label, 0.0) * candidates.predictions_NL[:, column]
    out: Floats = np.nan_to_num(reward_N)
    return out
