"""A session as its viewer may see it: topics by weight, and the recent history. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from recsys.events.field_schema import values_of
from recsys.features.catalogue import Catalogue
from recsys.features.counters import SPEEDS
from recsys.features.session import Session

_NOT_WATCHED: float = 0.3  # what an item that was shown and not watched long takes from its topics


class _Offset(msgspec.Struct):
    offset: int


def offset_of(blob: bytes) -> int:
    """The offset of a packed session, without reading the rest; raises msgspec.MsgspecError."""
    return msgspec.msgpack.decode(blob, type=_Offset).offset


def view_of(session: Session, catalogue: Catalogue, weights: Mapping[str, float]) -> dict[str, Any]:
    """What the page shows. ``weights`` of engagements are those of the policy."""
    return {
        "user_id": session.user_id,
        "events": session.events,
        "offset": session.offset,
        "last_ms": session.last_ms,
        "topics": _topics(session, catalogue, weights),
        "recent": _recent(session, catalogue),
    }


def _topics(
    session: Session, catalogue: Catalogue, weights: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The tags of the recent items, with what their counters weigh, heaviest first."""
    groups = session.features.schema.groups
    if not groups:
        return []
    name = "tags" if "tags" in groups else groups[-1]
    slot = session.features.slot(f"item.{name}")
    keys: dict[str, int] = {}
    for entry in session.history:
        index = catalogue.index_of_key(entry.keys[0])
        if index is not None:
            row = catalogue.keys[index, slot.start : slot.stop].tolist()
            keys |= dict(zip(values_of(catalogue.fields[index].get(name)), row, strict=False))
    if not keys:
        return []
    kinds = session.features.kinds
    read = session.counters.read(np.array(list(keys.values()), np.int64), session.last_ms)
    fast = read.reshape(len(keys), SPEEDS, len(kinds))[:, 0]
    weigh = np.array([weights.get(kind, 0.0) for kind in kinds], np.float32)
    weigh[kinds.index("shown")] = -_NOT_WATCHED
    weigh[kinds.index("watch")] = 0.0
    main = session.features.main_labels[0]
    weigh[kinds.index(main)] += _NOT_WATCHED
    total = (fast @ weigh).tolist()
    found = [{"tag": t, "weight": round(w, 3)} for t, w in zip(keys, total, strict=True)]
    return sorted(found, key=lambda topic: -float(topic["weight"]))


def _recent(session: Session, catalogue: Catalogue) -> list[dict[str, Any]]:
    """The history, newest first, by item ids; items that are unknown here are left out."""
    labels = session.features.schema.labels
    found = []
    for entry in reversed(session.history):
        index = catalogue.index_of_key(entry.keys[0])
        if index is not None:
            did = [name for name, value in zip(labels, entry.outcomes, strict=True) if value]
            found.append(
                {
                    "item_id": catalogue.ids[index],
                    "time_ms": entry.time_ms,
                    "watch_ms": entry.watch_ms,
                    "did": did,
                }
            )
    return found
