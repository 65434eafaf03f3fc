"""Who would be in an experiment: all users of the examples on a log, with running sums at equally many looks.

For the power of an experiment that isn't there yet (experiments/statistics/power.py): how much users differ, and how
much the same ones come again, is read off what they did without it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np

from experiments.assignment.metric import Metric, sums_of
from experiments.statistics.outcomes import DAY_MS, Outcomes
from experiments.statistics.power import Floats, covariance
from recsys.events.hashing import key_of
from recsys.events.records import EXAMPLES
from recsys.log.protocol import Log, newest_first
from training.outcomes.shown_item import ShownItem, closed_ms_of, read_shown, values_of

LOOKS: Final = 14
_READ: Final = 1_000
_MOST_USERS: Final = 200_000


@dataclass(frozen=True)
class Population:
    """``users`` in ``days``, ``sampled`` of whom are in ``outcomes``, whose days are the looks."""

    outcomes: Outcomes
    users: int
    days: float

    def covariance(self, metric: Metric) -> Floats:
        """K (T, T) of a metric: experiments/statistics/power.py. Raises ValueError where too little was counted."""
        return covariance(*self.outcomes.daily(metric, 0))

    def mean(self, metric: Metric) -> float:
        return self.outcomes.users(metric, 0).ratio


def read_population(
    log: Log, labels: Sequence[str], metrics: Sequence[Metric], looks: int = LOOKS
) -> Population:
    """All that the log has of examples. Raises ValueError where there are none."""
    first_ms, last_ms = _span(log)
    if last_ms <= first_ms:
        raise ValueError(
            "the log has no examples yet; give --mean, --sd and --users-per-day instead"
        )
    day_ms = max(1, -(-(last_ms + 1 - first_ms) // looks))
    sums = sums_of(metrics)
    its = Outcomes(("all",), sums, looks, _MOST_USERS, since_ms=first_ms, day_ms=day_ms)
    for batch in _batches(log):
        users = np.array([key_of("user", item.user_id) for item in batch], np.int64)
        shown_ms = np.array([item.shown_ms for item in batch], np.int64)
        nothing = np.zeros(len(batch), np.int64)
        its.expose(users, nothing, shown_ms, nothing)
        its.add(users, nothing, shown_ms, np.array([values_of(i, sums, labels) for i in batch]))
    return Population(its, round(len(its) / its.sampled), (last_ms - first_ms) / DAY_MS)


def _span(log: Log) -> tuple[int, int]:
    """When the oldest and the newest example that are there closed: by the ends of each partition."""
    times = []
    for partition in range(log.partitions(EXAMPLES)):
        oldest = log.read(EXAMPLES, partition, log.begin(EXAMPLES, partition), 1)
        newest = islice(newest_first(log, EXAMPLES, partition), 1)
        times += [closed_ms_of(record.value) for record in (*oldest, *newest)]
    return min(times, default=0), max(times, default=0)


def _batches(log: Log) -> Iterator[list[ShownItem]]:
    for partition in range(log.partitions(EXAMPLES)):
        offset = log.begin(EXAMPLES, partition)
        while records := log.read(EXAMPLES, partition, offset, _READ):
            read = [read_shown(record.value) for record in records]
            batch = [its for its in read if its is not None]
            if batch:
                yield batch
            offset = records[-1].offset + 1
