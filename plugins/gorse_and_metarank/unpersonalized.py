"""Lists that don't depend on a user, as Gorse and Metarank have them; ``serving.item_lists`` computes them,
without what safety rules close. ``category`` restricts a list to the items that have it in the field
``compat.categories``.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plugins.gorse_and_metarank.values import time_ms_of
from recsys.config.policy_config import Rule
from recsys.events.event_types import Rejected
from recsys.events.field_schema import CATEGORICAL
from recsys.events.hashing import Id
from serving.filters.conditions import filter_mask
from serving.replica.replica import Replica
from serving.request import AnswerItem

Scored = list[tuple[Id, float]]
Indices = NDArray[np.int64]
NEWEST: Final = 2000  # newest items examined for the latest, as for the source ``fresh``


class Unsupported(ValueError):
    """The request has no counterpart here; the message names the alternative."""


def latest(replica: Replica, allowed: Indices, now_ms: int) -> tuple[Indices, NDArray[np.float64]]:
    """Newest items by their timestamps in seconds (0 without one), among the newest by arrival."""
    newest = allowed[allowed >= len(replica.catalogue) - NEWEST][::-1]
    fields = replica.catalogue.fields
    times_s = np.array([_seconds(fields[i].get("timestamp")) for i in newest.tolist()])
    order = np.argsort(-times_s, kind="stable")
    return newest[order], times_s[order]


def popular(replica: Replica, allowed: Indices, now_ms: int) -> tuple[Indices, NDArray[np.float64]]:
    """Items with the most recent engagement. Scores are comparable with each other only."""
    best = replica.popularity.best(allowed)
    return best, replica.popularity.values[best]


def filters_of(replica: Replica, category: str) -> dict[str, str]:
    """The filter of a category; none without one. Raises Unsupported if items have no such field."""
    field = replica.config.compat.categories
    if category and field not in replica.features.schema.names("item", CATEGORICAL):
        raise Unsupported(
            f"categories need the field {field!r} as a categorical feature of items; set compat.categories "
            "to such a field"
        )
    return {field: category} if category else {}


def category_candidates(
    replica: Replica, category: str, excluded: Collection[int], most: int, rules: Sequence[Rule] = ()
) -> list[Id]:
    """Items of a category: the popular first, then the newest. ``excluded``: indices. Left out is what the
    policy's ``rules`` close, and safety rules that hold for everybody."""
    allowed = replica.catalogue.living.copy()
    allowed.subtract(replica.values.closed_by(rules))
    for rule in replica.config.safety.rules:
        if not rule.when and not rule.unless:
            allowed.subtract(replica.values.items(rule.field, rule.value))
    allowed.take(np.fromiter(excluded, np.int64, len(excluded)))
    allowed.take(np.flatnonzero(~filter_mask(replica, filters_of(replica, category))))
    top = replica.popularity.top
    newest = np.flatnonzero(allowed.mask())[-most:][::-1]
    indices = dict.fromkeys([*top[allowed[top]].tolist(), *newest.tolist()])
    return [replica.catalogue.ids[i] for i in indices][:most]


def scored(items: Iterable[AnswerItem]) -> Scored:
    return [(item.item_id, item.score or 0.0) for item in items]


def _seconds(timestamp: object) -> float:
    try:
        return time_ms_of(timestamp, "timestamp", 2**62) / 1000
    except Rejected:
        return 0.0
