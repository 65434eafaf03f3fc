"""Whom a line that was rolled back has answered, and which steps have learned what came of it.

Read from the log, where stamps and step records say so exactly; what retention has dropped is missing.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from recsys.events.control_records import Live
from recsys.events.event_types import Stamp
from recsys.events.hashing import Id
from recsys.events.records import EVENTS, EXAMPLES, STEPS, Step, unpack
from recsys.log.protocol import Log, Record
from recsys.process.log_consumer import UNREADABLE
from recsys.process.part_process import write_atomically
from training.lines.line import MAIN
from training.lines.offset_lookup import first_at, served_ms_of
from training.steps.lineage import Lineage

FOLDER: Final = "quarantine"
_READ: Final = 1_000
_MARGIN_MS: Final = 600_000  # clocks of several servers differ


class Asked(msgspec.Struct, frozen=True):
    """A request that was answered by the line."""

    request_id: str
    user_id: Id
    time_ms: int
    step: int


class Learned(msgspec.Struct, frozen=True):
    """A step of the live line with examples of such requests: ``learned`` before it was known, or left out
    (``quarantined``)."""

    epoch: int
    step: int
    learned: int = 0
    quarantined: int = 0


class Affected(msgspec.Struct, frozen=True):
    """``complete``: whether the log still has all since the line began to answer."""

    served_by: str
    requests: list[Asked]
    steps: list[Learned]
    complete: bool = True


class _Shown(msgspec.Struct, tag="impression", tag_field="type"):
    request_id: str
    user_id: Id
    time_ms: int
    stamp: Stamp | None = None


class _Example(msgspec.Struct):
    served_by: str = ""


def affected(log: Log, served_by: str, since_ms: int, lives: Sequence[Live]) -> Affected:
    """Everything of a (line/epoch) that answered from ``since_ms`` on. ``lives``: of the live line, all."""
    requests, complete = list[Asked](), True
    line, _, epoch = served_by.rpartition("/")
    for partition in range(log.partitions(EVENTS)):
        start = first_at(log, EVENTS, partition, since_ms - _MARGIN_MS, served_ms_of)
        complete = complete and (start > log.begin(EVENTS, partition) or start == 0)
        for record in _from(log, EVENTS, partition, start):
            try:
                shown = _shown.decode(record.value)
            except UNREADABLE:
                continue
            stamp = shown.stamp
            if stamp is not None and (stamp.line, stamp.epoch) == (line, int(epoch)):
                requests.append(Asked(shown.request_id, shown.user_id, shown.time_ms, stamp.step))
    requests.sort(key=lambda asked: (asked.time_ms, asked.request_id))
    return Affected(served_by, requests, _steps(log, served_by, since_ms, lives), complete)


def _steps(log: Log, served_by: str, since_ms: int, lives: Sequence[Live]) -> list[Learned]:
    """The steps of the line's history that have such examples. Those of an epoch that was left for another
    are no part of it any more."""
    lineage, found = Lineage(log, MAIN, lives), list[Learned]()
    for record in _from(log, STEPS, 0, log.begin(STEPS, 0)):
        try:
            step = unpack(record.value, Step)
        except UNREADABLE:
            continue
        counts = step.line == MAIN and step.epoch == lineage.epoch_of(step.step)
        if not counts or step.time_ms < since_ms - _MARGIN_MS:
            continue
        own = sum(_count(log, served_by, its.partition, its.start, its.stop) for its in step.ranges)
        if own:
            left_out = served_by in step.without
            found.append(
                Learned(step.epoch, step.step, 0 if left_out else own, own if left_out else 0)
            )
    return found


def _count(log: Log, served_by: str, partition: int, start: int, stop: int) -> int:
    start = max(start, log.begin(EXAMPLES, partition))
    count = 0
    for record in _from(log, EXAMPLES, partition, start, stop):
        try:
            count += _example.decode(record.value).served_by == served_by
        except UNREADABLE:
            continue
    return count


def _from(
    log: Log, topic: str, partition: int, start: int, stop: int | None = None
) -> Iterator[Record]:
    end = log.end(topic, partition) if stop is None else stop
    while start < end and (records := log.read(topic, partition, start, min(_READ, end - start))):
        yield from (record for record in records if record.offset < end)
        start = records[-1].offset + 1


def file_of(state: Path, served_by: str) -> Path:
    """Where the list of a line/epoch stands."""
    return state / FOLDER / f"{served_by.replace('/', '-')}.json"


def write(state: Path, found: Affected) -> Path:
    """Keeps it in the state folder, as JSON."""
    file = file_of(state, found.served_by)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(found)))
    return file


_shown = msgspec.msgpack.Decoder(_Shown)
_example = msgspec.msgpack.Decoder(_Example)
