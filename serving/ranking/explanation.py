"""Reasons for an item: the viewer's history with its author and its tags."""

from typing import Any

import numpy as np

from recsys.events.field_schema import values_of
from recsys.features.catalogue import Catalogue
from recsys.features.session import Session


def reasons(session: Session, catalogue: Catalogue, index: int) -> tuple[dict[str, Any], ...]:
    """One entry for each author or tag of the item that the viewer has met: how often, and the rate of the
    first label, most met first."""
    features = catalogue.features
    shown, liked = features.kinds.index("shown"), features.kinds.index(features.main_labels[0])
    slow = len(features.kinds)  # slow counters follow the fast ones
    entries = []
    for name in features.schema.groups:
        slot = features.slot(f"item.{name}")
        keys = catalogue.keys[index, slot.start : slot.stop]
        counts = session.counters.read(np.ascontiguousarray(keys), session.last_ms)
        for value, row in zip(values_of(catalogue.fields[index].get(name)), counts, strict=False):
            times = float(row[slow + shown])
            if times > 0.05:
                rate = round(min(1.0, float(row[slow + liked]) / times), 3)
                met = round(times, 1)
                entries.append({"feature": name, "value": value, "met": met, "liked": rate})
    return tuple(sorted(entries, key=lambda reason: -reason["met"]))
