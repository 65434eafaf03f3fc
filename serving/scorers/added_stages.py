"""Filters and scorers that plug-ins add between the policy's rules and the draw: ``serve.stages``."""

import logging

import numpy as np

from recsys import plugins
from recsys.arrays.bitmap import Bitmap
from recsys.observability.log_lines import LogThrottle
from serving.filters.filter import Filter
from serving.query import Query
from serving.replica.replica import Replica
from serving.request import Candidates
from serving.scorers.scorer import Scorer

_log = logging.getLogger(__name__)


class AddedStages(Scorer):
    """Runs the plug-ins in the order of the configuration.

    Not for rules that must hold: a late or failed one is left out, and named in ``degraded``.
    """

    def __init__(self, load: plugins.Load) -> None:
        self._load, self._failures = load, LogThrottle()

    def __call__(self, replica: Replica, query: Query, candidates: Candidates) -> Candidates:
        for name in replica.config.serve.stages:
            if query.deadline.skips(name):
                candidates = candidates.degrade(name)
                continue
            try:
                candidates = apply_stage(name, self._load(plugins.STAGES, name), replica, query, candidates)
            except Exception:  # a plug-in may raise anything
                self._failures.exception(_log, "a stage failed", query.now_ms / 1000, stage=name)
                candidates = candidates.degrade(name)
        return candidates


def apply_stage(
    name: str, stage: Filter | Scorer, replica: Replica, query: Query, before: Candidates
) -> Candidates:
    """The candidates after a scorer, whose result are candidates, or a filter. Raises ValueError for a wrong
    result."""
    after = stage(replica, query, before)
    if not isinstance(after, Candidates):
        is_mask = isinstance(after, np.ndarray) and after.dtype == np.bool_
        if after is None or isinstance(after, Bitmap) or not is_mask or after.shape != before.open_N.shape:
            raise ValueError(f"a filter closes {after}, expected a mask of {len(before.open_N)} candidates")
        return before.close(name, after)
    changed = before.having(added=after.added)
    lost_N = np.isfinite(before.final_N) & ~np.isfinite(changed.final_N)
    if changed.final_N.shape != before.scores_N.shape or lost_N.any():
        raise ValueError(f"scores are {changed.final_N}, expected {len(before.indices_N)} numbers")
    return changed
