"""Finds the offset of a time in a topic by bisection, as times of one partition are nearly in order. Use
server times only: client times may belong to an imported past."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from recsys.log.compression import plain
from recsys.log.protocol import Log
from recsys.process.log_consumer import UNREADABLE, Consumer

_READ: Final = 1_000
_MOST_PASSED: Final = 10_000  # records without a time that are skipped at one place


def first_at(
    log: Log, topic: str, partition: int, time_ms: int, time_of: Callable[[bytes], int | None]
) -> int:
    """An offset from which on all records of ``time_ms`` or later follow; the first if times are in order:
    subtract a margin for records out of order. ``time_of`` returns None for a record whose time doesn't fit
    its place; then up to 10,000 following records are tried. If none has a time, or a record is unreadable,
    the offset is too low, never too high."""
    low, high = log.begin(topic, partition), log.end(topic, partition)
    while low < high:
        middle = (low + high) // 2
        at, at_ms = _next_time(log, topic, partition, middle, high, time_of)
        if at_ms is not None and at_ms < time_ms:
            low = at + 1
        else:
            high = middle
    return low


def consumer_from(log: Log, topic: str, time_ms: int, time_of: Callable[[bytes], int | None]) -> Consumer:
    """A consumer of all partitions, from ``first_at`` of a time on."""
    partitions = range(log.partitions(topic))
    offsets = {p: first_at(log, topic, p, time_ms, time_of) for p in partitions}
    return Consumer(log, topic, partitions, offsets)


def served_ms_of(event: bytes) -> int | None:
    """The time of a record of ``events`` written by the server (impression or tick); None for others."""
    try:
        time_ms: int = _served.decode(plain(event)).time_ms
    except UNREADABLE:
        return None
    return time_ms


def _next_time(
    log: Log, topic: str, partition: int, start: int, stop: int, time_of: Callable[[bytes], Any]
) -> tuple[int, int | None]:
    """Offset and time of the next record with a time; no time if none follows or a record is unreadable."""
    at, stop = start, min(stop, start + _MOST_PASSED)
    count = 1  # usually the first record has a time
    while at < stop and (records := log.read(topic, partition, at, min(count, stop - at))):
        for record in records:
            try:
                at_ms = time_of(record.value)
            except UNREADABLE:
                return record.offset, None
            if at_ms is not None:
                return record.offset, at_ms
        at, count = records[-1].offset + 1, _READ
    return at, None


class _Impression(msgspec.Struct, tag="impression", tag_field="type"):
    time_ms: int


class _Tick(msgspec.Struct, tag="tick", tag_field="type"):
    time_ms: int


_served: Final = msgspec.msgpack.Decoder(_Impression | _Tick)
