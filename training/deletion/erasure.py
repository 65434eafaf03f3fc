"""Erases users who asked to be forgotten: from the log, its dead letters and the archive, for good.

Sessions and rows have let go of a user long before (serving/sessions/session_loop.py, training/joining/joiner.py).
What stands on the log goes once nobody has to read it a second time: a fold that begins again from its
snapshot must find what it found before, and so must a line that goes back to one. So a first pass takes what
lies before all of their places, and a last one, when they have passed the request, takes the rest.

Records keep their places. An event becomes a tick of its time, an example an empty place. Rows of the archive
are left out when its files are written anew.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from recsys.events.control_records import Control, Erasure
from recsys.events.event_types import Tick, decode, encode
from recsys.events.hashing import Id, partition_of
from recsys.events.records import (
    CONTROL,
    DEAD_LETTERS,
    EVENTS,
    EXAMPLES,
    DeadLetter,
    ErasedExample,
    Example,
    Forget,
    non_example,
    pack,
    unpack,
)
from recsys.log.protocol import Log, LogUnchangeable, Record
from recsys.process.log_consumer import UNREADABLE
from recsys.process.part_snapshot import PartState
from recsys.process.retry_loop import RetryLoop
from training.archive.files import erase_rows, files_of

PART: Final = "erasures"
EVERY_MS: Final = 60_000  # between two looks at what may go now
_SCRUB_EVERY_MS: Final = 600_000  # appends wait for it: those who are through meanwhile share one
# Who begins again from a place in a topic. One that has held nothing yet may begin anywhere.
_HOLDERS: Final = {
    EVENTS: ("archive", "counters", "joiner", "session-fold"),
    EXAMPLES: ("archive", "snapshots/"),
}


class Request(msgspec.Struct, kw_only=True):
    """A user on the way to being forgotten. ``examples_end``: the offset after their last example, once it
    is known."""

    user_id: Id
    offset: int  # of the tombstone among the user's events
    control: int  # of the request itself
    begun: bool = False
    erased: bool = False  # no record says anything of the user; the log's files may
    examples_end: int | None = None

    @property
    def key(self) -> bytes:
        return str(self.user_id).encode()


class _Packed(msgspec.Struct):
    waiting: list[Request]


class Eraser(RetryLoop):
    """Folds ``control`` and erases what may go. ``clock`` (milliseconds) says when to look."""

    def __init__(self, log: Log, archive: Path, state: PartState, clock: Callable[[], int]) -> None:
        """``archive``: its folder. Raises LogLost where ``state`` is of another log."""
        self._log, self._archive, self._state, self._clock = log, archive, state, clock
        self._changes = changes_records(log)
        self.erased = 0  # records of the log
        self.done = 0  # users
        self._scrub_ms = 0
        self._restore()

    @property
    def waiting(self) -> int:
        """Users of whom something still stands on the log or in the archive."""
        return len(self._waiting)

    def _restore(self) -> None:
        saved = self._state.load(self._log.id)
        self._offset, self._waiting = self._log.begin(CONTROL, 0), list[Request]()
        if saved is not None:
            self._offset = saved.offsets[CONTROL][0]
            self._waiting = msgspec.msgpack.decode(saved.blob, type=_Packed).waiting
        self._due_ms = self._clock()

    def _save(self) -> None:
        blob = msgspec.msgpack.encode(_Packed(self._waiting))
        self._state.save(self._log.id, {CONTROL: {0: self._offset}}, blob)

    def _turn(self) -> int:
        moved = self._fold()
        if self._waiting and self._clock() >= self._due_ms:
            self._due_ms = self._clock() + EVERY_MS
            for request in self._waiting:
                if not request.erased:
                    self._go_on(request)
            left = [request for request in self._waiting if not request.erased]
            if len(left) < len(self._waiting) and self._scrub():
                self._state.drop_broken()
                self.done += len(self._waiting) - len(left)
                self._waiting = left
                self._save()
        return moved

    def _fold(self) -> int:
        moved = 0
        while records := self._log.read(CONTROL, 0, self._offset):
            for record in records:
                try:
                    said: Any = unpack(record.value, Control)  # type: ignore[arg-type]
                except UNREADABLE:
                    continue
                if isinstance(said, Erasure) and said.user_id != "":
                    request = Request(
                        user_id=said.user_id, offset=said.offset, control=record.offset
                    )
                    self._waiting.append(request)
            moved += len(records)
            self._offset = records[-1].offset + 1
        if moved:
            self._save()
        return moved

    def _scrub(self) -> bool:
        """Whether nothing is left in the log's files of what was erased; else the next look tries again."""
        if self._clock() < self._scrub_ms:
            return False
        topics = (EVENTS, EXAMPLES, DEAD_LETTERS, CONTROL)
        if not all([self._log.scrub(topic) for topic in topics]):
            return False
        self._scrub_ms = self._clock() + _SCRUB_EVERY_MS
        return True

    def _go_on(self, request: Request) -> None:
        partition = partition_of(request.user_id, self._log.partitions(EVENTS))
        events, examples = self._passed(EVENTS, partition), self._passed(EXAMPLES, partition)
        if not request.begun:
            self._erase(request, partition, events, examples)
            request.begun = True
        if request.examples_end is None and events > request.offset:
            request.examples_end = self._end_of_examples(request, partition)
        self._save()
        if request.examples_end is not None and examples >= request.examples_end:
            self._erase(request, partition, events, examples)
            if self._changes:
                said = Erasure(user_id="", offset=request.offset)
                self._log.replace(CONTROL, 0, [Record(request.control, b"", pack(said))])
            request.erased = True
            self._save()

    def _passed(self, topic: str, partition: int) -> int:
        """The offset before which nobody has to read again."""
        if not self._changes:  # nothing can be held there, and only the archive is ours to change
            ends = [h.last + 1 for h in files_of(self._archive, topic) if h.partition == partition]
            return max(ends, default=self._log.begin(topic, partition))
        held = self._log.holds(topic, partition)
        for holder in _HOLDERS[topic]:
            if not any(name.startswith(holder) for name in held):
                return self._log.begin(topic, partition)
        return min(held.values())

    def _end_of_examples(self, request: Request, partition: int) -> int | None:
        """The joiner puts a ``Forget`` after a user's last example. None where it isn't there yet."""
        end = self._log.end(EXAMPLES, partition)
        offsets = self._log.keyed(EXAMPLES, partition, [request.key], end)
        for record in read_at(self._log, EXAMPLES, partition, offsets):
            said = non_example(record.value)
            if isinstance(said, Forget) and said.offset == request.offset:
                return record.offset + 1
        # Where the joiner has passed the request and it isn't there, it is an empty place already.
        return end if self._changes else None

    def _erase(self, request: Request, partition: int, events: int, examples: int) -> None:
        ends = {EVENTS: min(events, request.offset + 1), EXAMPLES: examples}
        if self._changes:
            for topic, end in ends.items():
                self.erased += erase_records(
                    self._log, topic, partition, request.key, request.offset, end
                )
            self.erased += erase_letters(self._log, request.key)
        for topic in ends:
            gone = partial(_goes, topic, request.offset)
            erase_rows(self._archive, topic, partition, request.key, gone)


def changes_records(log: Log) -> bool:
    """Whether records of a log can be replaced; Kafka's go with retention alone."""
    try:
        log.replace(EVENTS, 0, [])
    except LogUnchangeable:
        return False
    return True


def erase_records(log: Log, topic: str, partition: int, key: bytes, before: int, end: int) -> int:
    """Erases what stands before ``end`` in ``topic`` of the user of ``key``, of events up to ``before`` and
    what came of them; returns how many records that were."""
    offsets = log.keyed(topic, partition, [key], end)
    left = [left_of(topic, record, before) for record in read_at(log, topic, partition, offsets)]
    return log.replace(topic, partition, [record for record in left if record is not None])


def erase_letters(log: Log, key: bytes) -> int:
    """Empties the dead letters about the user of ``key``: where each stood, and when, is kept."""
    offsets = log.keyed(DEAD_LETTERS, 0, [key], log.end(DEAD_LETTERS, 0))
    empty = []
    for record in read_at(log, DEAD_LETTERS, 0, offsets):
        letter = unpack(record.value, DeadLetter)
        gone = msgspec.structs.replace(letter, raw=b"", reason="its user was forgotten")
        empty.append(Record(record.offset, b"", pack(gone)))
    return log.replace(DEAD_LETTERS, 0, empty)


def left_of(topic: str, record: Record, before: int) -> Record | None:
    """What a record of a user becomes, who is forgotten up to the event at ``before``; None: it stays."""
    if topic == EVENTS:
        return _event(record) if record.offset <= before else None
    its: Example | Forget | ErasedExample | None = non_example(record.value)
    try:
        its = its or unpack(record.value, Example)
    except UNREADABLE:
        return Record(record.offset, b"", pack(ErasedExample(sequence=0, closed_ms=0)))
    if isinstance(its, ErasedExample) or its.offset > before:  # the latter of one who came back
        return None
    empty = ErasedExample(sequence=its.sequence, closed_ms=its.closed_ms)
    return Record(record.offset, b"", pack(empty))


def _goes(topic: str, before: int, record: Record) -> bool:
    return left_of(topic, record, before) is not None


def _event(record: Record) -> Record:
    """A tick: event time moves as it did."""
    try:
        time_ms = decode(record.value).time_ms
    except UNREADABLE:
        time_ms = 0
    return Record(record.offset, b"", encode(Tick(time_ms=time_ms)))


def read_at(log: Log, topic: str, partition: int, offsets: Sequence[int]) -> list[Record]:
    """The records at some offsets, of those that are there."""
    found = []
    for offset in offsets:
        if offset >= log.begin(topic, partition):
            found += [r for r in log.read(topic, partition, offset, 1) if r.offset == offset]
    return found
