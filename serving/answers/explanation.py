"""Reasons for the items of a list: how much each item's score falls without a part of the input.

Each reason is removed on its own, and all items are scored again (occlusion; Zeiler and Fergus, "Visualizing
and understanding convolutional networks", 2014). Effects need not add up to the score, since the ranker
combines its inputs.
"""

from collections import Counter, deque
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recsys.events.field_schema import values_of
from recsys.features.catalogue import Catalogue
from recsys.features.counters import CounterTable
from recsys.features.session import Session
from serving.query import Query

Floats = NDArray[np.float64]
# Scores of the items (R,) for another query and other item counters.
Scorer = Callable[[Query, CounterTable], Floats]
_Met = dict[tuple[str, Any], dict[str, float]]  # by field and value
_VALUES: Final = 8  # most frequent authors and tags of the history, each of which is a reason
_SMALLEST: Final = 0.01  # effect that is reported, as a share of the score


def explain(
    score: Scorer, query: Query, catalogue: Catalogue, counters: CounterTable, indices: list[int]
) -> list[tuple[dict[str, Any], ...]]:
    """Reasons for each item of a list, largest effect first. A reason that is an author or tag of the item
    also has how often the viewer met it, and the rate of the first label."""
    whole_R = score(query, counters)
    session, reasons = query.session, list[tuple[dict[str, Any], Floats]]()
    for (name, value), keys in _history_values(session, catalogue).items():
        effect_R = whole_R - score(replace(query, session=_without(session, keys)), counters)
        reasons.append(({"feature": name, "value": value}, effect_R))
    variants = {
        "profile": (replace(query, session=session.without_profile()), counters),
        "context": (replace(query, request=replace(query.request, context={})), counters),
        "popularity": (query, session.features.counter_table()),
    }
    for name, variant in variants.items():
        reasons.append(({"feature": name}, whole_R - score(*variant)))
    return [
        _reasons_of(reasons, rank, float(whole_R[rank]), _met(session, catalogue, index))
        for rank, index in enumerate(indices)
    ]


def _history_values(session: Session, catalogue: Catalogue) -> dict[tuple[str, str], set[int]]:
    """The most frequent authors and tags of the history, with the keys of the items that have them."""
    keys = dict[tuple[str, str], set[int]]()
    counts = Counter[tuple[str, str]]()
    for entry in session.history:
        index = catalogue.index_of_key(entry.keys[0])
        for name in session.features.schema.groups if index is not None else ():
            assert index is not None
            for value in values_of(catalogue.fields[index].get(name)):
                keys.setdefault((name, value), set()).add(entry.keys[0])
                counts[name, value] += 1
    return {pair: keys[pair] for pair, _ in counts.most_common(_VALUES)}


def _without(session: Session, item_keys: set[int]) -> Session:
    """The session without some items in its history. Counters by author and tag stay."""
    other, history = copy(session), session.history
    other.history = deque((e for e in history if e.keys[0] not in item_keys), history.maxlen)
    return other


def _reasons_of(
    reasons: list[tuple[dict[str, Any], Floats]], rank: int, score: float, met: _Met
) -> tuple[dict[str, Any], ...]:
    entries = []
    for reason, effect_R in reasons:
        effect = float(effect_R[rank])
        details = met.pop((reason["feature"], reason.get("value")), {})
        if details or abs(effect) > _SMALLEST * abs(score):
            entries.append(reason | details | {"effect": round(effect, 4)})
    entries += [{"feature": name, "value": value} | more for (name, value), more in met.items()]
    return tuple(sorted(entries, key=lambda entry: -abs(entry.get("effect", 0.0))))


def _met(session: Session, catalogue: Catalogue, index: int) -> _Met:
    """How often the viewer met each author and tag of an item, and the rate of the first label."""
    features = catalogue.features
    shown, liked = features.slow_counter("shown"), features.slow_counter(features.main_labels[0])
    met: _Met = {}
    for name in features.schema.groups:
        slot = features.slot(f"item.{name}")
        keys = catalogue.keys[index, slot.start : slot.stop]
        counts = session.counters.read(np.ascontiguousarray(keys), session.last_ms)
        for value, row in zip(values_of(catalogue.fields[index].get(name)), counts, strict=False):
            times = float(row[shown])
            if times > 0.05:
                rate = round(min(1.0, float(row[liked]) / times), 3)
                met[name, value] = {"met": round(times, 1), "liked": rate}
    return met
