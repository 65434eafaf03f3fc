"""A selector: draws a list from scored candidates."""

from typing import Protocol

import numpy as np

from recsys.config.policy_config import PolicyConfig
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates, Floats
from serving.selection.caps import caps_of
from serving.selection.sampling import BY_SCORE, SamplingInput, SamplingParams, level


class Selector(Protocol):
    """Draws the list. What it draws at random follows from ``query.request_id``."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        """The candidates with the list that is ``drawn``, at most ``query.request.n`` of them."""
        ...


def sampling_input(replica: Replica, query: Query, candidates: Candidates) -> SamplingInput:
    """Input of the draw: candidates as they are scored for the query's policy."""
    config, indices = query.policy.config, candidates.indices_N
    unit = level(candidates.scores_N) if config.relative else 1.0
    temperature = config.temperature * (unit or 1.0)
    exploration = temperature, config.explore, config.quota, config.diversity
    params = BY_SCORE if query.request.by_score else SamplingParams(*exploration)
    return SamplingInput(
        candidates.final_N, params, caps_of(replica, query, candidates),
        trust_of(replica.popularity.shown[indices], config),
        replica.vectors_of(indices) if params.diversity else None, candidates.open_N,
        {rank: int(np.flatnonzero(indices == i)[0]) for rank, i in candidates.pinned.items()},
    )  # fmt: skip


def trust_of(shown_N: Floats, policy: PolicyConfig) -> Floats:
    """Trial weight of items: 1 where never shown, falling to 0 at ``trust_after`` showings."""
    if not policy.trust_after:
        return np.zeros(len(shown_N))
    left: Floats = np.maximum(0.0, 1.0 - shown_N / policy.trust_after)
    return left
