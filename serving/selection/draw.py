"""Draws the list by one policy, or by two in turns."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates
from serving.selection.sampling import sample_slate
from serving.selection.selector import Selector, sampling_input
from serving.selection.team_draft import draft_slate


class Draw(Selector):
    """A draw by score, caps, exploration and quota (serving/selection/sampling.py)."""

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        given = sampling_input(replica, query, candidates)
        slate = sample_slate(given, query.request.n, request_id=query.request_id)
        return candidates.drawn(slate, candidates.scores_N[slate.positions])


class InTurns(Selector):
    """A draft of two policies (serving/selection/team_draft.py). ``adjusted`` scores the candidates, which
    are those of the first policy, by the second."""

    def __init__(self, adjusted: Callable[[Query, Candidates], Candidates]) -> None:
        self._adjusted = adjusted

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        (control_name, _), (name, policy) = query.policy.rivals
        control = sampling_input(replica, query, candidates)
        query = replace(query, policy=policy)
        treated = self._adjusted(query, candidates)
        # By another name than a stage that both went without: reconstruction skips these for both.
        lost = [f"{s} ({name})" for s in treated.degraded if s not in candidates.degraded]
        inputs, teams = (control, sampling_input(replica, query, treated)), (control_name, name)
        slate = draft_slate(inputs, query.request.n, teams, request_id=query.request_id)
        both = treated.scores_N[slate.positions], candidates.scores_N[slate.positions]
        return candidates.degrade(*lost).drawn(slate, np.where(np.array(slate.drawers, np.bool_), *both))
