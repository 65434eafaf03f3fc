"""Where a topic goes on from a time, found by halving: times of one partition are nearly in order."""

from collections.abc import Callable
from contextlib import suppress

from recsys.consumer import UNREADABLE
from recsys.log import Log


def first_at(
    log: Log, topic: str, partition: int, time_ms: int, time_of: Callable[[bytes], int]
) -> int:
    """The first offset whose record is of ``time_ms`` or later, or can't be read. Take a margin off the time
    for what comes out of order."""
    low, high = log.begin(topic, partition), log.end(topic, partition)
    while low < high:
        middle = (low + high) // 2
        there = time_ms
        for record in log.read(topic, partition, middle, 1):
            with suppress(*UNREADABLE):
                there = time_of(record.value)
        if there < time_ms:
            low = middle + 1
        else:
            high = middle
    return low
