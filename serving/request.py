"""Requests, candidates and answers of the pipeline: values, no transport."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from recsys.arrays.bitmap import Bitmap
from recsys.events.event_types import Impression, Stamp
from recsys.events.hashing import Id
from recsys.features.request_features import RequestFeatures

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
# What a filter closes: a mask of candidates, or a set of items.
Closed = NDArray[np.bool_] | Indices | Bitmap
# Names in ``degraded`` that the service adds, not the pipeline.
SESSION, STALE, CATCHING_UP = "session", "stale", "catching_up"


@dataclass(frozen=True)
class Request:
    """One call of recommend. ``candidate_ids``: rank just these; None: retrieve. ``by_score``: order the list
    by score, without exploration and diversification. ``plain``: use nothing of the viewer's profile and
    history. ``filters``: conditions on items by field (serving/filters/conditions.py)."""

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

    ``features`` are the viewer's alone until the candidates are complete. ``allowed``, before any are
    retrieved: items of the catalogue that the filters let through. ``indices_N`` are catalogue indices; bit k
    of ``sources_N`` marks the candidates that ``source_names[k]`` retrieved. ``left_out`` gives the reason
    for each candidate of the caller that isn't among them. ``pinned`` maps ranks to catalogue indices.
    ``chances_N``: logarithms of how much more likely than the ranker says each is taken, by the choice model;
    None where it doesn't choose. ``scores_N`` come from the ranker; ``added`` holds what the choice model and
    each later stage added to them. ``open_N`` marks the candidates that no filter removed, ``limits_N`` those
    that the viewer's limits let through. ``removed`` counts removals by filter; ``degraded`` names the stages
    that were skipped or failed.
    """

    features: RequestFeatures
    allowed: Bitmap | None = None
    indices_N: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    sources_N: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    source_names: tuple[str, ...] = ()
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

    def sources_of(self, position: int) -> tuple[str, ...]:
        """Names of the sources that retrieved one candidate."""
        bits = int(self.sources_N[position])
        return tuple(name for k, name in enumerate(self.source_names) if bits >> k & 1)

    @property
    def rows(self) -> Indices | slice:
        """The candidates' rows in arrays of the catalogue: all of them until some are retrieved."""
        return self.indices_N if self.allowed is None else slice(None)

    def listed(self, indices_N: Indices, sources_N: Indices, *source_names: str) -> "Candidates":
        """A list of items in place of the catalogue, all open, with a bit for each source."""
        open_N = np.ones(len(indices_N), np.bool_)
        return self.having(
            allowed=None, indices_N=indices_N, sources_N=sources_N, source_names=source_names, open_N=open_N
        )

    def having(self, **changed: Any) -> "Candidates":
        """As ``dataclasses.replace``, in a tenth of the time: each of ten stages makes new candidates."""
        candidates = object.__new__(Candidates)
        candidates.__dict__.update(self.__dict__, **changed)
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

    def close(self, name: str, closed: Closed) -> "Candidates":
        """Removes what a filter closes, and counts it under the filter's name."""
        before = self.removed.get(name, 0)
        if self.allowed is None:
            closed_N = self.closed_N(closed)
            count = int((self.open_N & closed_N).sum())
            return self.having(open_N=self.open_N & ~closed_N, removed=self.removed | {name: before + count})
        allowed = self.allowed.copy()
        if isinstance(closed, Bitmap):
            allowed.subtract(closed)
        elif closed.dtype == np.bool_:
            allowed.subtract(Bitmap.of(np.asarray(closed, np.bool_)))
        else:
            allowed.take(np.asarray(closed, np.int64))
        count = self.allowed.count - allowed.count
        return self.having(allowed=allowed, removed=self.removed | {name: before + count})

    def closed_N(self, closed: Closed) -> NDArray[np.bool_]:
        """Marks the listed candidates that a filter closes."""
        if isinstance(closed, Bitmap):
            return closed[self.indices_N]
        if closed.dtype == np.bool_:
            return np.asarray(closed, np.bool_)
        return np.isin(self.indices_N, closed)

    def drawn(self, slate: Slate, scores_R: Floats) -> "Candidates":
        """The candidates with a list drawn from them, and the scores of its items."""
        return self.having(slate=slate, slate_scores_R=scores_R, removed=self.removed | slate.closed)

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
