"""Reads running sums of all users of the examples on a log, for the power analysis of an experiment."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from experiments.assignment.design import Metric, sums_of
from experiments.statistics.outcomes import DAY_MS, UserOutcomes
from plugins.experiment_power.sequential_power import Floats, covariance
from recsys.events.hashing import key_of
from recsys.events.records import CLICK_LIST, EXAMPLES
from recsys.log.protocol import Log, Record, newest_first, read_range
from recsys.process.log_consumer import decoded
from training.outcomes.shown_item import ShownItem, metric_increments

LOOKS: Final = 14
_READ: Final = 1_000
_MOST_USERS: Final = 200_000
_NO_EXAMPLES: Final = "the log has no examples yet; give --mean, --sd and --users-per-day instead"


@dataclass(frozen=True)
class Population:
    """``users`` in ``days``. ``outcomes`` holds a sample of them; its days are the looks."""

    outcomes: UserOutcomes
    users: int
    days: float

    def covariance(self, metric: Metric) -> Floats:
        """K (T, T) of a metric, see sequential_power.py. Raises ValueError for too few data."""
        return covariance(*self.outcomes.daily(metric, 0))

    def mean(self, metric: Metric) -> float:
        return self.outcomes.users(metric, 0).ratio


def read_population(
    log: Log, labels: Sequence[str], metrics: Sequence[Metric], looks: int = LOOKS
) -> Population:
    """Reads all examples of shown lists on the log. Raises ValueError if it has none."""
    first_ms, last_ms = _span(log)
    if last_ms <= first_ms:
        raise ValueError(_NO_EXAMPLES)
    day_ms = max(1, -(-(last_ms + 1 - first_ms) // looks))
    sums = sums_of(metrics)
    outcomes = UserOutcomes(("all",), sums, looks, _MOST_USERS, since_ms=first_ms, day_ms=day_ms)
    for batch in _batches(log):
        users = np.array([key_of("user", item.user_id) for item in batch], np.int64)
        shown_ms = np.array([item.shown_ms for item in batch], np.int64)
        zeros = np.zeros(len(batch), np.int64)
        outcomes.expose(users, zeros, shown_ms, zeros)
        increments = np.array([metric_increments(item, sums, labels) for item in batch])
        outcomes.add(users, zeros, shown_ms, increments)
    if not len(outcomes):
        raise ValueError(_NO_EXAMPLES)
    users_in_all = round(len(outcomes) / outcomes.sampled)
    return Population(outcomes, users_in_all, (last_ms - first_ms) / DAY_MS)


def _span(log: Log) -> tuple[int, int]:
    """Close times of the oldest and the newest shown item left, from the ends of each partition."""
    times = list[int]()
    for partition in range(log.partitions(EXAMPLES)):
        begin, end = log.begin(EXAMPLES, partition), log.end(EXAMPLES, partition)
        oldest = read_range(log, EXAMPLES, partition, begin, end)
        newest = newest_first(log, EXAMPLES, partition)
        firsts = (next(_shown(records), None) for records in (oldest, newest))
        times += [item.closed_ms for item in firsts if item]
    return min(times, default=0), max(times, default=0)


def _batches(log: Log) -> Iterator[list[ShownItem]]:
    for partition in range(log.partitions(EXAMPLES)):
        offset = log.begin(EXAMPLES, partition)
        while records := log.read(EXAMPLES, partition, offset, _READ):
            if batch := list(_shown(records)):
                yield batch
            offset = records[-1].offset + 1


def _shown(records: Iterable[Record]) -> Iterator[ShownItem]:
    """The examples of shown lists: nobody saw one that was made of a click."""
    items = (item for _, item in decoded(records, ShownItem))
    return (item for item in items if not item.request_id.startswith(CLICK_LIST))
