"""The moment of a request: time of day, and what the viewer has done."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from recsys.features.columns import Column
from recsys.features.families.base import Family, Floats, RequestView

if TYPE_CHECKING:
    from recsys.features.feature_set import FeatureSet

EVENTS_UNIT: Final = 5.0  # of the logarithm of the number of events
MOMENT: Final = ("hour.sin", "hour.cos", "since_last_event", "events")
_DAY_MS: Final = 86_400_000


class Moment(Family):
    """Time of day, time since the last event, and number of events of the viewer."""

    name = "moment"

    @classmethod
    def columns(cls, features: "FeatureSet", before: Sequence[Column]) -> Iterator[Column]:
        """The same for all candidates."""
        for name in MOMENT:
            yield Column(cls.name, name, (cls.name, name), own=True)

    def write(self, request: RequestView, dense_NF: Floats) -> None:
        """The day is a circle of UTC; a viewer without events has been away for 11 days."""
        session, now_ms = request.session, request.now_ms
        turn = 2 * np.pi * (now_ms % _DAY_MS) / _DAY_MS
        gap_s = (now_ms - session.last_ms) / 1000.0 if session.last_ms else 1e6
        since, events = np.log1p(max(0.0, gap_s)) / 10.0, np.log1p(session.events) / EVENTS_UNIT
        dense_NF[:, self.at] = np.array([np.sin(turn), np.cos(turn), since, events], np.float32)
