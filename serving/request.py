"""Requests, candidates and answers of the pipeline: values, no transport."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Impression, Stamp
from recsys.events.hashing import Id
from recsys.features.request_features import RequestFeatures

Floats = NDArray[np.float64]
SESSION, STALE = "session", "stale"  # names in ``degraded`` that the service adds, not the pipeline


@dataclass(frozen=True)
class Request:
    """One call of recommend. ``candidate_ids``: rank just these; None: retrieve. ``by_score``: order the list
    by score, without exploration and diversification. ``plain``: use nothing of the viewer's profile and
    history. ``filters``: conditions on items by field (serving/retrieval/item_filters.py)."""

    user_id: Id
    n: int = 10
    surface: str = "feed"
    context: dict[str, Any] = field(default_factory=dict)
    exclude_ids: tuple[Id, ...] = ()
    candidate_ids: tuple[Id, ...] | None = None
    explain: bool = False
    by_score: bool = False
    plain: bool = False
    filters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Slate:
    """A drawn list: positions among the candidates in rank order (R), with their propensities.

    ``trial_R`` marks ranks that the quota filled. ``offered`` counts the drawn ranks at which a trial item
    was available. ``closed`` counts the candidates that each cap excluded. Lists of a team draft also have
    ``teams``, the arm of each rank ("" for none); ``shares``, P(the treatment picked it | the list), 0 for
    none; and ``drawers``, 0 for the control (and pinned items), 1 for the treatment, also where no team owns
    the rank.
    """

    positions: NDArray[np.int64]
    propensities: Floats
    trial_R: NDArray[np.bool_]
    offered: int
    closed: dict[str, int]
    teams: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    drawers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """Candidate items of one request (N) and the results of the stages that have run.

    ``features`` are the viewer's alone until the candidates are complete. ``sources`` names the sources that
    retrieved each item, by catalogue index. ``left_out`` gives the reason for each candidate of the caller
    that isn't among them. ``allowed`` are the items that passed the filters; ``pinned`` maps ranks to
    catalogue indices. ``chances_N``: logarithms of how much more likely than the ranker says each is taken,
    by the choice model; None where it doesn't choose. ``scores_N`` come from the ranker; ``added`` holds
    what the choice model and each later stage added to them, and ``open_N``
    marks the candidates that none of these removed, ``limits_N`` those that the
    viewer's limits let through. ``removed`` counts removals by stage or filter; ``degraded`` names the stages
    that were skipped or failed.
    """

    features: RequestFeatures
    allowed: Bitmap | None = None
    sources: Mapping[int, list[str]] = field(default_factory=dict)
    left_out: Mapping[Id, str] = field(default_factory=dict)
    pinned: Mapping[int, int] = field(default_factory=dict)
    predictions_NL: NDArray[np.float32] | None = None
    chances_N: Floats | None = None
    scores_N: Floats = field(default_factory=lambda: np.zeros(0))
    open_N: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    limits_N: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    added: Mapping[str, Floats] = field(default_factory=dict)
    slate: Slate | None = None
    slate_scores_R: Floats = field(default_factory=lambda: np.zeros(0))
    removed: dict[str, int] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()

    @cached_property
    def indices(self) -> list[int]:
        """Catalogue indices, in the order of the arrays."""
        return list(self.sources)

    @cached_property
    def indices_N(self) -> NDArray[np.int64]:
        return np.array(self.indices, np.int64)

    def having(self, **changed: Any) -> "Candidates":
        """As ``dataclasses.replace``, in a tenth of the time: each of ten stages makes new candidates."""
        candidates = object.__new__(Candidates)
        candidates.__dict__.update(self.__dict__, **changed)
        if "sources" in changed:
            candidates.__dict__.pop("indices", None)
            candidates.__dict__.pop("indices_N", None)
        return candidates

    @property
    def final_N(self) -> Floats:
        """Scores that the list is drawn by."""
        return sum(self.added.values(), start=self.scores_N)

    def scored(self, scores_N: Floats) -> "Candidates":
        """The candidates with new scores, all open, without what later stages added."""
        open_N = np.ones(len(scores_N), np.bool_)
        return self.having(scores_N=scores_N, open_N=open_N, added={})

    def add_scores(self, stage: str, added_N: Floats) -> "Candidates":
        return self.having(added={**self.added, stage: added_N})

    def keep(self, stage: str, kept_N: NDArray[np.bool_]) -> "Candidates":
        """Closes the candidates outside of ``kept_N`` and adds them to those removed by the stage."""
        count = self.removed.get(stage, 0) + int((self.open_N & ~kept_N).sum())
        return self.having(open_N=self.open_N & kept_N, removed=self.removed | {stage: count})

    def degrade(self, *stages: str) -> "Candidates":
        return self.having(degraded=(*self.degraded, *stages)) if stages else self


class AnswerItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """One item of the answer, as the API encodes it. ``predictions`` and ``reasons``: with ``explain``."""

    item_id: Id
    rank: int
    score: float | None
    propensity: float
    sources: tuple[str, ...]
    fields: dict[str, Any]
    predictions: dict[str, float] | None = None
    reasons: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class Answer:
    """The list, the impression to be logged, the stamp, and the stages that were skipped.

    ``removed`` counts the candidates that each stage removed. ``offered`` counts the ranks at which a trial
    item could have been drawn; an item that the quota drew has the source ``quota``. ``left_out`` gives the
    reason for each candidate of the caller that isn't in the list although there was room.
    """

    request_id: str
    items: tuple[AnswerItem, ...]
    impression: Impression
    stamp: Stamp
    degraded: tuple[str, ...]
    removed: dict[str, int]
    offered: int = 0
    left_out: Mapping[Id, str] = field(default_factory=dict)
    candidates: Candidates | None = field(default=None, compare=False, repr=False)


def with_degraded(answer: Answer, stage: str) -> Answer:
    """The answer with one more skipped stage named in it and in its impression."""
    stages = (*answer.degraded, stage)
    impression = msgspec.structs.replace(answer.impression, degraded=list(stages))
    return replace(answer, degraded=stages, impression=impression)
