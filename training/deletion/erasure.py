"""Erases users on request: from the log, its dead letters and the archive, permanently.

Records on the log are erased once no reader needs them again: a fold or a line that restarts from its
snapshot must read the same records. So a first pass erases what all readers have passed, and a last one,
after they passed the request, the rest. Users that a running system unlearns wait until that is over, since
a replay must know which records were theirs. Records keep their offsets: an event becomes a tick of its time,
an example a tombstone. Archive files are rewritten without the rows, by the worker that writes them. Two
processes mustn't replace one record, so records of ``control`` are the first worker's, once a snapshot of the
others tells that all else of a user is erased.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from experiments.promotion.lifecycle import Lifecycle
from recsys.clock import is_due, timer_of
from recsys.events.control_records import Control, Erasure, Unlearning
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
    Withdrawn,
    non_example,
    pack,
    unpack,
)
from recsys.log.protocol import Log, LogLost, LogUnchangeable, Record, read_range, records_of_keys
from recsys.process.fold import Fold
from recsys.process.log_consumer import UNREADABLE, Consumer, decoded, readable
from recsys.process.part_snapshot import PartState, Saved, ShareState
from recsys.process.worker_share import WHOLE, Share
from training.archive.digest import DamagedFile
from training.archive.files import erase_rows, files_of, keys_of

PART: Final = "erasures"
_LOG: Final = logging.getLogger(__name__)
EVERY_MS: Final = 60_000  # between two attempts
_SCRUB_EVERY_MS: Final = 600_000  # appends wait for a scrub, so finished requests share one
_AT_ONCE: Final = 1_000  # users of a partition: each search reads all of the topic and its archive
# Holders that restart from an offset of a topic. One without a hold may restart anywhere.
_HOLDERS: Final = {
    EVENTS: ("archive", "counters", "joiner", "session-fold"),
    EXAMPLES: ("archive", "snapshots/"),
}


class PendingErasure(msgspec.Struct, kw_only=True):
    """A pending erasure. ``examples_end``: the offset after the user's last example, once it is known."""

    user_id: Id
    offset: int  # of the user's removal in ``events``
    control: int  # of the request itself
    begun: bool = False
    erased: bool = False  # from all records; the log's files may still contain them
    examples_end: int | None = None

    @property
    def key(self) -> bytes:
        return str(self.user_id).encode()


class _Packed(msgspec.Struct):
    waiting: list[PendingErasure]


class Eraser(Fold):
    """Folds ``control`` and erases the users of a worker's partitions; ``clock`` (milliseconds) decides when
    to try."""

    def __init__(
        self, log: Log, archive: Path, state: PartState, clock: Callable[[], int], share: Share = WHOLE
    ) -> None:
        """``archive``: its folder. Raises LogLost if ``state`` is of another log."""
        self._log, self._archive, self._state = log, archive, state
        self._timer_ms = timer_of(clock)
        self._share, self._count = share, log.partitions(EVENTS)
        # The offset of a partition is that in ``control`` up to which its users are in the file.
        self._files = ShareState(state, CONTROL, self._count, share)
        # Each scrub rewrites the whole log: together, workers do as many as one.
        self._scrub_every_ms = _SCRUB_EVERY_MS * share.workers
        self._changes = changes_records(log)
        self._follows = self._changes and share.first and not share.whole  # other workers
        self.erased = 0  # records of the log
        self.done = 0  # users
        self._scrub_ms = 0
        self._unread: set[int] = set()  # partitions of others whose snapshot can't be read
        self._damaged: set[Path] = set()  # archive files that may still have rows of erased users
        self._restore()

    @property
    def waiting(self) -> int:
        """Number of users with data left on the log or in the archive."""
        return len(self._waiting)

    def _restore(self) -> None:
        saved = self._files.load(self._log.id)
        # Requests on ``control`` before these offsets are in the files, or done.
        self._begins = {p: self._log.begin(CONTROL, 0) for p in self._share.partitions(self._count)}
        self._waiting = list[PendingErasure]()
        for partition, snapshot in saved.items():
            offsets = snapshot.offsets[CONTROL]
            self._begins[partition] = offsets[partition if partition in offsets else 0]
            self._waiting += [r for r in _requests(snapshot) if self._partition(r) == partition]
        self._consumer = Consumer(self._log, CONTROL, [0], {0: min(self._begins.values())})
        self._lifecycle = Lifecycle()
        for message in readable(self._log, CONTROL, Unlearning):
            self._lifecycle.fold(message)
        self._fold()
        self._save()  # files of another number of workers, which name users, go
        self._due_ms = self._timer_ms()

    def _partition(self, request: PendingErasure) -> int:
        return partition_of(request.user_id, self._count)

    def _save(self) -> None:
        def pack_some(partitions: Sequence[int]) -> bytes:
            requests = [r for r in self._waiting if self._partition(r) in partitions]
            return msgspec.msgpack.encode(_Packed(requests))

        offsets = dict.fromkeys(self._begins, self._consumer.offsets[0])
        self._files.save(self._log.id, offsets, pack_some)

    def _turn(self) -> int:
        moved = self._fold()
        due = is_due(self._timer_ms(), self._due_ms, EVERY_MS)
        if due and (self._waiting or self._follows):
            self._due_ms = self._timer_ms() + EVERY_MS
            unlearning = self._lifecycle.unlearnings.pending_users
            left = [r for r in self._waiting if not r.erased and str(r.user_id) not in unlearning]
            for partition in self._begins:
                requests = [r for r in left if self._partition(r) == partition]
                for start in range(0, len(requests), _AT_ONCE):
                    self._advance(requests[start : start + _AT_ONCE], partition)
                    self._save()
            named = [*self._waiting, *self._others()] if self._share.first else []
            if named := [r for r in named if r.erased and not self._is_anonymous(r)]:
                self._anonymize(named)
            done = {r.control for r in self._waiting if r.erased and self._is_anonymous(r)}
            if done and self._scrub():
                self._state.drop_broken()
                self.done += len(done)
                self._waiting = [r for r in self._waiting if r.control not in done]
                self._save()
                self._save()  # the file before names them, too
        return moved

    def _others(self) -> list[PendingErasure]:
        """Requests in the snapshots of other workers. Users in one that can't be read aren't erased yet."""
        requests = list[PendingErasure]()
        for partition in set(range(self._count)) - self._begins.keys() if self._follows else ():
            try:
                saved = self._state.of(partition).load(self._log.id, move=False)
                requests += _requests(saved) if saved else ()
                self._unread.discard(partition)
            except (ValueError, LogLost) as error:
                if partition not in self._unread:
                    _LOG.warning("requests of another worker wait: %s", error)
                self._unread.add(partition)
        return requests

    def _fold(self) -> int:
        before, waiting = self._consumer.offsets[0], len(self._waiting)
        for record, message in decoded(self._consumer.drain(), Control):
            self._lifecycle.fold(message)
            if isinstance(message, Erasure) and message.user_id != "":
                user_id, offset = message.user_id, message.offset
                request = PendingErasure(user_id=user_id, offset=offset, control=record.offset)
                if record.offset >= self._begins.get(self._partition(request), record.offset + 1):
                    self._waiting.append(request)
        if len(self._waiting) > waiting:
            self._save()
        return self._consumer.offsets[0] - before

    def _scrub(self) -> bool:
        """Removes erased data from the log's files; False if that failed, and the next attempt repeats it."""
        if not is_due(self._timer_ms(), self._scrub_ms, self._scrub_every_ms):
            return False
        topics = (EVENTS, EXAMPLES, DEAD_LETTERS, CONTROL)
        if not all([self._log.scrub(topic) for topic in topics]):
            return False
        self._scrub_ms = self._timer_ms() + self._scrub_every_ms
        return True

    def _advance(self, requests: Sequence[PendingErasure], partition: int) -> None:
        ends = {topic: self._passed(topic, partition) for topic in _HOLDERS}
        self._erase([r for r in requests if not r.begun], partition, ends)
        for request in requests:
            request.begun = True
        events, examples = ends[EVENTS], ends[EXAMPLES]
        unended = [r for r in requests if r.examples_end is None and events > r.offset]
        self._find_ends(unended, partition)
        last = [r for r in requests if r.examples_end is not None and examples >= r.examples_end]
        is_complete = self._erase(last, partition, ends)
        for request in last:
            request.erased = is_complete

    def _is_anonymous(self, request: PendingErasure) -> bool:
        """Whether ``control`` no longer names the user, or can't be changed."""
        records = self._log.read(CONTROL, 0, request.control, 1) if self._changes else []
        return all(erasure.user_id == "" for _, erasure in decoded(records, Erasure))

    def _anonymize(self, requests: Sequence[PendingErasure]) -> None:
        """Removes the users' ids from the requests on ``control``."""
        offsets, records = _offsets(requests), list[Record]()
        for request in requests:
            digest = digest_of_key(self._log.id, request.key)
            anonymous = Erasure(user_id="", offset=request.offset, digest=digest)
            records.append(Record(request.control, b"", pack(anonymous)))
        begin, end = self._log.begin(CONTROL, 0), self._log.end(CONTROL, 0)
        for record, message in decoded(read_range(self._log, CONTROL, 0, begin, end), Unlearning):
            # A quarantine's request names an earlier offset: that of the verdict.
            users = {u: n for u, n in message.users.items() if n > offsets.get(u.encode(), -1)}
            if len(users) < len(message.users):
                without = msgspec.structs.replace(message, users=users)
                records.append(Record(record.offset, b"", pack(without)))
        self._log.replace(CONTROL, 0, records)

    def _passed(self, topic: str, partition: int) -> int:
        """The offset before which no reader has to read again."""
        if not self._changes:  # no holds, and only the archive can be changed
            ends = [h.last + 1 for h in files_of(self._archive, topic) if h.partition == partition]
            return max(ends, default=self._log.begin(topic, partition))
        holds = self._log.holds(topic, partition)
        for holder in _HOLDERS[topic]:
            if not any(name.startswith(holder) for name in holds):
                return self._log.begin(topic, partition)
        return min(holds.values())

    def _find_ends(self, requests: Sequence[PendingErasure], partition: int) -> None:
        """Sets ``examples_end`` to the offset after the joiner's ``Forget``, which follows a user's last
        example; None before it."""
        end, keys = self._log.end(EXAMPLES, partition), {request.key for request in requests}
        ends = {
            (record.key, message.offset): record.offset + 1
            for record in records_of_keys(self._log, EXAMPLES, partition, keys, end)
            if isinstance(message := non_example(record.value), Forget)
        }
        # The joiner has passed the requests: without a ``Forget``, it is a tombstone already.
        default = end if self._changes else None
        for request in requests:
            request.examples_end = ends.get((request.key, request.offset), default)

    def _erase(self, requests: Sequence[PendingErasure], partition: int, ends: Mapping[str, int]) -> bool:
        """Erases users up to where no reader has to read again; False if a damaged archive file is left."""
        befores, damage = _offsets(requests), list[DamagedFile]()
        if self._changes and befores:
            self.erased += erase_letters(self._log, befores.keys())
        for topic, end in ends.items() if befores else ():
            if self._changes:
                self.erased += erase_records(self._log, topic, partition, befores, end)
            is_erased = partial(erased_record, topic, befores)
            damage += erase_rows(self._archive, topic, partition, befores.keys(), is_erased)
        for error in damage:
            if error.path not in self._damaged:
                _LOG.error("the deletion of %d users waits: %s", len(befores), error)
            self._damaged.add(error.path)
        return not damage


def _offsets(requests: Iterable[PendingErasure]) -> dict[bytes, int]:
    """By user, the offset of the newest request."""
    return {request.key: request.offset for request in sorted(requests, key=lambda r: r.offset)}


def _requests(saved: Saved) -> list[PendingErasure]:
    return msgspec.msgpack.decode(saved.blob, type=_Packed).waiting


def digest_of_key(log_id: str, key: bytes) -> bytes:
    """Digest by which an erased user is recognised in a copy of the log."""
    return hashlib.blake2b(key, key=log_id.encode()[:64], digest_size=16).digest()


def erased_users(
    log: Log, archive: Path, erasures: Sequence[Erasure], others: Iterable[bytes] = ()
) -> list[str]:
    """Ids of the users of some erasures that another copy of the log has: those that these name, and those
    that this copy or its archive has as keys, or that are among ``others``."""
    users = {str(erasure.user_id) for erasure in erasures if erasure.user_id != ""}
    digests, keys = {erasure.digest for erasure in erasures}, set(others)
    for topic in (EVENTS, EXAMPLES):
        for partition in range(log.partitions(topic)):
            begin, end = log.begin(topic, partition), log.end(topic, partition)
            keys |= {record.key for record in read_range(log, topic, partition, begin, end)}
            keys |= keys_of(archive, topic, partition)
            users |= {key.decode() for key in keys if digest_of_key(log.id, key) in digests}
            keys.clear()
    return sorted(users)


def changes_records(log: Log) -> bool:
    """Whether records of a log can be replaced; Kafka's disappear with retention alone."""
    try:
        log.replace(EVENTS, 0, [])
    except LogUnchangeable:
        return False
    return True


def erase_records(log: Log, topic: str, partition: int, befores: Mapping[bytes, int], end: int) -> int:
    """Erases the records before ``end`` in ``topic`` of some users, by key with the offset up to which their
    events go, and examples of these. Returns the number of records."""
    records = records_of_keys(log, topic, partition, befores.keys(), end)
    erased = (erased_record(topic, befores, record) for record in records)
    return log.replace(topic, partition, [record for record in erased if record is not None])


def erase_letters(log: Log, keys: Collection[bytes]) -> int:
    """Empties the dead letters about users, but for their places and times."""
    empty = []
    for record in records_of_keys(log, DEAD_LETTERS, 0, keys, log.end(DEAD_LETTERS, 0)):
        letter = unpack(record.value, DeadLetter)
        emptied = msgspec.structs.replace(letter, raw=b"", reason="its user was forgotten")
        empty.append(Record(record.offset, b"", pack(emptied)))
    return log.replace(DEAD_LETTERS, 0, empty)


def erased_record(topic: str, befores: Mapping[bytes, int], record: Record) -> Record | None:
    """The replacement of a record where some users' events go, by key up to an offset; None: it stays."""
    if (before := befores.get(record.key)) is None:
        return None
    if topic == EVENTS:
        if record.offset > before:
            return None
        try:
            time_ms = decode(record.value).time_ms
        except UNREADABLE:
            time_ms = 0
        # Event time moves as before.
        return Record(record.offset, b"", encode(Tick(time_ms=time_ms)))
    message: Example | Forget | ErasedExample | Withdrawn | None = non_example(record.value)
    try:
        message = message or unpack(record.value, Example)
    except UNREADABLE:
        return Record(record.offset, b"", pack(ErasedExample(sequence=0, closed_ms=0)))
    # An offset above ``before`` belongs to a user who came back.
    if isinstance(message, ErasedExample) or message.offset > before:
        return None
    return tombstone_of(record, message)


def tombstone_of(record: Record, message: Example | Forget | Withdrawn) -> Record:
    """The replacement of a record of ``examples``, which doesn't name its user."""
    tombstone = ErasedExample(sequence=message.sequence, closed_ms=message.closed_ms)
    return Record(record.offset, b"", pack(tombstone))
