"""Stages that plug-ins add between the policy's rules and the draw: ``serve.stages``."""

import logging
from dataclasses import replace
from typing import Protocol

import numpy as np

from recsys import plugins
from recsys.observability.log_lines import LogThrottle
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates

_log = logging.getLogger(__name__)


class AddedStage(Protocol):
    """Plug-in of the group ``recsys.stages``: changes scores, or removes candidates.

    It may read its arguments, and changes nothing in place. A score is a weighted sum of predicted
    engagements. Not for rules that must hold: a late or failed stage is left out, and named in ``degraded``.
    """

    version: str  # in each impression, with the name

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        """The candidates after ``add_scores(name, added_N)`` or ``keep(name, kept_N)``: a number or a mark
        for each. Other changes are dropped."""


def run_added(
    load: plugins.Load, failures: LogThrottle, replica: Replica, query: Query, candidates: Candidates
) -> Candidates:
    """Runs the stages in the order of the configuration."""
    for name in replica.config.serve.stages:
        if query.deadline.skips(name):
            candidates = candidates.degrade(name)
            continue
        try:
            candidates = apply_stage(load(plugins.STAGES, name), replica, query, candidates)
        except Exception:  # a plug-in may raise anything
            failures.exception(_log, "a stage failed", query.now_ms / 1000, stage=name)
            candidates = candidates.degrade(name)
    return candidates


def apply_stage(stage: AddedStage, replica: Replica, query: Query, before: Candidates) -> Candidates:
    """The candidates with the changes that are allowed. Raises ValueError for wrong ones."""
    after = stage(replica, query, before)
    open_N = before.open_N & after.open_N
    changed = replace(before, added=after.added, open_N=open_N, removed=after.removed)
    lost_N = np.isfinite(before.final_N) & ~np.isfinite(changed.final_N)
    if changed.final_N.shape != before.scores_N.shape or lost_N.any():
        raise ValueError(f"scores are {changed.final_N}, expected {len(before.indices_N)} numbers")
    return changed
