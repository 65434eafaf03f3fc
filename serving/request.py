"""What is asked of the pipeline and what it answers: values, no transport."""

from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.events.event_types import Impression, Stamp
from recsys.events.hashing import Id
from recsys.features.feature_set import RequestFeatures

SESSION, STALE = "session", "stale"  # what the service, not the pipeline, says that an answer lacks


@dataclass(frozen=True)
class Request:
    """One call of recommend. ``candidate_ids``: rank just these; None: retrieve. ``by_score``: the list is in
    the order of its scores, nothing is explored, and nothing is moved for diversity."""

    user_id: Id
    n: int = 10
    surface: str = "feed"
    context: dict[str, Any] = field(default_factory=dict)
    exclude_ids: tuple[Id, ...] = ()
    candidate_ids: tuple[Id, ...] | None = None
    explain: bool = False
    by_score: bool = False


@dataclass(frozen=True)
class AnswerItem:
    """One item of the answer. ``predictions`` and ``reasons`` are filled when explain is asked."""

    item_id: Id
    rank: int
    score: float | None
    propensity: float
    sources: tuple[str, ...]
    fields: dict[str, Any]
    predictions: dict[str, float] | None = None
    reasons: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class Ranked:
    """The candidates of a request (N), each with its catalogue index, and what the stages made of them.

    ``scores_N`` are the ranker's. ``added`` is what each later stage added to them, by its name, and
    ``open_N`` the candidates that all of these let through.
    """

    indices: list[int]
    sources: list[list[str]]
    features: RequestFeatures
    predictions_NL: NDArray[np.float32] | None
    scores_N: NDArray[np.float64]
    open_N: NDArray[np.bool_]
    added: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def final_N(self) -> NDArray[np.float64]:
        """The scores that the list is drawn by."""
        total = self.scores_N
        for more in self.added.values():
            total = total + more
        return total


@dataclass(frozen=True)
class Answer:
    """The list, the impression to be logged, the stamp, the stages that were skipped.

    ``removed`` is how many candidates each stage removed, by its name. ``offered``: at how many ranks an item
    on trial could have been drawn; one that was, by the quota, has the source ``quota``.
    """

    request_id: str
    items: tuple[AnswerItem, ...]
    impression: Impression
    stamp: Stamp
    degraded: tuple[str, ...]
    removed: dict[str, int]
    offered: int = 0
    ranked: Ranked | None = field(default=None, compare=False, repr=False)


def without(answer: Answer, stage: str) -> Answer:
    """The answer, with a skipped stage named in it and in its impression."""
    stages = (*answer.degraded, stage)
    impression = msgspec.structs.replace(answer.impression, degraded=list(stages))
    return replace(answer, degraded=stages, impression=impression)
