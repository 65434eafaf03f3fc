"""Formats a session for display: topics by weight, and the recent history. Pure."""

from collections.abc import Container, Iterable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from recsys.events.field_schema import values_of
from recsys.features.catalogue import Catalogue
from recsys.features.session import Session

_NOT_WATCHED: Final = 0.3  # weight that topics lose by an item that wasn't watched long


class _Offset(msgspec.Struct):
    offset: int


def offset_of(blob: bytes) -> int:
    """Offset of a packed session, decoding nothing else; raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(blob, type=_Offset).offset


def view_of(
    session: Session,
    catalogue: Catalogue,
    weights: Mapping[str, float],
    learned: Container[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Session as the page shows it. ``weights``: of engagements, from the policy. ``learned``: request and
    item of views that the serving model has learned."""
    return {
        "user_id": session.user_id,
        "events": session.events,
        "offset": session.offset,
        "last_ms": session.last_ms,
        "topics": _topics(session, catalogue, weights),
        "recent": _recent(session, catalogue, learned),
    }


def _topics(session: Session, catalogue: Catalogue, weights: Mapping[str, float]) -> list[dict[str, Any]]:
    """Tags of the recent items with the weight of their counters, heaviest first."""
    groups = session.features.schema.groups
    keys = history_groups(session, catalogue, ["tags"] if "tags" in groups else groups[-1:])
    kinds = session.features.kinds
    counts = session.counters.read(np.array(list(keys.values()), np.int64), session.last_ms)
    fast = counts[:, : len(kinds)]
    kind_weights = np.array([weights.get(kind, 0.0) for kind in kinds], np.float32)
    kind_weights[kinds.index("shown")] = -_NOT_WATCHED
    kind_weights[kinds.index("watch")] = 0.0
    kind_weights[kinds.index(session.features.main_labels[0])] += _NOT_WATCHED
    totals = (fast @ kind_weights).tolist()
    topics = [{"tag": t, "weight": round(w, 3)} for (_, t), w in zip(keys, totals, strict=True)]
    return sorted(topics, key=lambda topic: -float(topic["weight"]))


def history_groups(
    session: Session, catalogue: Catalogue, names: Iterable[str]
) -> dict[tuple[str, Any], int]:
    """Keys of the values that known items of the history have in some fields, by (field, value)."""
    slots = {name: session.features.slot(f"item.{name}") for name in names}
    keys: dict[tuple[str, Any], int] = {}
    for entry in session.history:
        index = catalogue.index_of_key(entry.keys[0])
        if index is None:
            continue
        for name, slot in slots.items():
            row = catalogue.keys[index, slot.start : slot.stop].tolist()
            values = values_of(catalogue.fields[index].get(name))
            keys |= {(name, value): key for value, key in zip(values, row, strict=False)}
    return keys


def _recent(
    session: Session, catalogue: Catalogue, learned: Container[tuple[str, str]]
) -> list[dict[str, Any]]:
    """History, newest first; items that the catalogue lacks are left out."""
    labels = session.features.schema.labels
    entries = ((catalogue.index_of_key(e.keys[0]), e) for e in reversed(session.history))
    return [
        {
            "item_id": catalogue.ids[index],
            "time_ms": entry.time_ms,
            "watch_ms": entry.watch_ms,
            "did": [name for name, did in zip(labels, entry.outcomes, strict=True) if did],
            "learned": (entry.request_id, str(catalogue.ids[index])) in learned,
        }
        for index, entry in entries
        if index is not None
    ]
