"""The judged half of a log's days."""

import numpy as np

from recsys.events.event_types import Impression
from recsys.model.prediction_metrics import days
from replay.datasets.dataset import Dataset
from replay.replay_report import first_judged_day

_DAY_MS = 86_400_000


def judged_from_ms(dataset: Dataset) -> int:
    """Begin of the later half of a log's days: rows are judged from then on, and `frozen` is frozen.

    Raises ValueError for a log of fewer than two days: nothing would be learned before.
    """
    times = [event.time_ms for event in dataset.events() if isinstance(event, Impression)]
    shown = days(times, dataset.utc_offset_h) if times else np.zeros(0, np.int64)
    if (count := len(np.unique(shown))) < 2:
        raise ValueError(
            f"{dataset.name} has impressions of {count} days, expected 2 or more: the first half is "
            "learned from, the second is judged"
        )
    return first_judged_day(shown) * _DAY_MS - round(dataset.utc_offset_h * 3_600_000)
