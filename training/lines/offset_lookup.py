"""Where a topic goes on from a time, found by halving: times of one partition are nearly in order.

Not those that clients give: a past may be imported at any time, days of it in one place of ``events``.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE

_READ: Final = 1_000
_MOST_PASSED: Final = 10_000  # records without a time that are passed over at one place


def first_at(
    log: Log, topic: str, partition: int, time_ms: int, time_of: Callable[[bytes], int | None]
) -> int:
    """An offset from which on all records of ``time_ms`` or later are found, the first such where times are
    in order. Take a margin off the time for what comes out of order.

    ``time_of``: None for a record whose time says nothing of its place; the next one is asked, up to 10,000
    further on. Where none has a time, and where a record can't be read, too much is found, not too little.
    """
    low, high = log.begin(topic, partition), log.end(topic, partition)
    while low < high:
        middle = (low + high) // 2
        at, there = _next_time(log, topic, partition, middle, high, time_of)
        if there is not None and there < time_ms:
            low = at + 1
        else:
            high = middle
    return low


def served_ms_of(event: bytes) -> int | None:
    """The time of a record of ``events`` that the server wrote, an impression or a tick; None of all else."""
    try:
        its: Any = _served.decode(event)
    except UNREADABLE:
        return None
    ms: int = its.time_ms
    return ms


def _next_time(
    log: Log, topic: str, partition: int, start: int, stop: int, time_of: Callable[[bytes], Any]
) -> tuple[int, int | None]:
    """Where the next record with a time stands, and that; None where none is met, or one can't be read."""
    at, stop = start, min(stop, start + _MOST_PASSED)
    count = 1  # mostly the first one has it
    while at < stop and (records := log.read(topic, partition, at, min(count, stop - at))):
        for record in records:
            try:
                there = time_of(record.value)
            except UNREADABLE:
                return record.offset, None
            if there is not None:
                return record.offset, there
        at, count = records[-1].offset + 1, _READ
    return at, None


class _Impression(msgspec.Struct, tag="impression", tag_field="type"):
    time_ms: int


class _Tick(msgspec.Struct, tag="tick", tag_field="type"):
    time_ms: int


_served = msgspec.msgpack.Decoder(_Impression | _Tick)
