"""Why this item: what the session remembers of its author, its tags and the item itself."""

from typing import Any

import numpy as np

from recsys.events.field_schema import values_of
from recsys.features.catalogue import Catalogue
from recsys.features.session import Session


def reasons(session: Session, catalogue: Catalogue, index: int) -> tuple[dict[str, Any], ...]:
    """One entry for each author or tag of the item that the viewer has met: how often, and how often it was
    liked (the first label), most met first."""
    features = catalogue.features
    shown, liked = features.kinds.index("shown"), features.kinds.index(features.main_labels[0])
    slow = len(features.kinds)  # the slow counters stand behind the fast ones
    out = []
    for name in features.schema.groups:
        slot = features.slot(f"item.{name}")
        keys = catalogue.keys[index, slot.start : slot.stop]
        met = session.counters.read(np.ascontiguousarray(keys), session.last_ms)
        for value, row in zip(values_of(catalogue.fields[index].get(name)), met, strict=False):
            times = float(row[slow + shown])
            if times > 0.05:
                rate = min(1.0, float(row[slow + liked]) / times)
                out.append(
                    {
                        "feature": name,
                        "value": value,
                        "met": round(times, 1),
                        "liked": round(rate, 3),
                    }
                )
    return tuple(sorted(out, key=lambda reason: -reason["met"]))
