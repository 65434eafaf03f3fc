"""What is asked of the pipeline and what it answers: values, no transport."""

from dataclasses import dataclass, field
from typing import Any

from recsys.events import Impression, Stamp
from recsys.hashing import Id


@dataclass(frozen=True)
class Request:
    """One call of recommend. ``candidate_ids``: rank just these; None: retrieve."""

    user_id: Id
    n: int = 10
    surface: str = "feed"
    context: dict[str, Any] = field(default_factory=dict)
    exclude_ids: tuple[Id, ...] = ()
    candidate_ids: tuple[Id, ...] | None = None
    explain: bool = False


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
class Answer:
    """The list, the impression to be logged, the stamp, the stages that were skipped."""

    request_id: str
    items: tuple[AnswerItem, ...]
    impression: Impression
    stamp: Stamp
    degraded: tuple[str, ...]
    removed: dict[str, int]  # candidates that each filter removed
