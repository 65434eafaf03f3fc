"""Thread that appends to the log for the event loop, which must not wait for a disk.

Group commit: one append sends everything that waits. The order is kept, so that an impression precedes its
engagements. Events are acknowledged once committed. Impressions have no waiting client: while the log is away
they are kept in memory and then on disk, up to limits, and sent in order when it is back. Until then events
are refused, because they would precede their impressions. Impressions over the limits, or that the log never
accepts, are dropped and counted. So are all while disk space runs out, and spooled ones of users who asked to
be forgotten since.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from recsys.events.control_records import Erasure
from recsys.events.event_types import decode
from recsys.events.records import CONTROL
from recsys.log.protocol import Append, Log, LogUnavailable
from recsys.process.log_consumer import UNREADABLE, Consumer, decoded
from serving.ingestion.disk_spool import DiskSpool, Waiting

_BATCH: Final = 500  # entries in one append
_RETRY_S: Final = 0.5
_ADOPT_EVERY_S: Final = 5.0  # between two searches for the spool files of replicas that ended
FULL, CLOSED, REFUSED, TORN = "full", "closed", "refused", "torn"  # reasons for dropped impressions
SPACE: Final = "space"
FORGOTTEN: Final = "forgotten"
_LOG: Final = logging.getLogger(__name__)


class Overloaded(RuntimeError):
    """Too many events wait for the log: try again later."""


@dataclass(eq=False)
class _Entry:
    """Records of one caller. Without a future none waits for them, and they are kept while the log is away.
    ``on_commit`` gets the offset of the first record, unless it was spooled."""

    topic: str
    records: Sequence[Append]
    done: "Future[list[int]] | None"
    size: int
    on_commit: Callable[[int], None] | None = None


class LogWriter:
    """Appends in the background.

    ``keep_bytes``: limit for impressions in memory; ``spool``: for more of them on disk while the log is
    away; ``max_waiting``: limit for waiting events; ``is_full``: whether the disk has no space for
    impressions. The public counters are for metrics.
    """

    def __init__(
        self,
        log: Log,
        *,
        keep_bytes: int = 64 << 20,
        max_waiting: int = 20_000,
        retry_s: float = _RETRY_S,
        spool: DiskSpool | None = None,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._log, self._keep_bytes, self._max_waiting = log, keep_bytes, max_waiting
        self._retry_s, self._spool, self._is_full = retry_s, spool, is_full
        self._changed = threading.Condition()
        self._entries: deque[_Entry] = deque()
        self._closing = False
        self._failing_until_s = 0.0
        self._failures_in_a_row = 0
        self._adopted_s = 0.0
        self._control: Consumer | None = None  # read when something is spooled
        self._forgotten: dict[bytes, int] = {}  # time of the request by user
        self.kept_bytes = 0  # in memory
        self.on_disk_bytes = 0  # as of a moment ago
        self.waiting = 0  # records with a waiting caller
        self.failures = 0
        self.drops: Counter[str] = Counter()
        self._behind = False  # whether own impressions are spooled
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    @property
    def dropped(self) -> int:
        """Number of impressions that will never be logged."""
        return self.drops.total()

    @property
    def failing(self) -> bool:
        """Whether the newest append failed a moment ago."""
        return time.monotonic() < self._failing_until_s

    def start(self) -> None:
        self._thread.start()

    def impression(self, topic: str, record: Append, on_commit: Callable[[int], None] | None = None) -> bool:
        """Queues a record without a waiting caller; returns False, and counts it, if there is no room.
        ``on_commit``: called by the thread with the offset once committed; must neither wait nor raise."""
        size, full = len(record.key) + len(record.value), self._is_full()
        with self._changed:
            if full:
                self.drops[SPACE] += 1
                return False
            if self._closing or self.kept_bytes + size > self._keep_bytes:
                self.drops[CLOSED if self._closing else FULL] += 1
                return False
            self.kept_bytes += size
            self._entries.append(_Entry(topic, [record], None, size, on_commit))
            self._changed.notify()
            return True

    def commit(self, topic: str, records: Sequence[Append]) -> "Future[list[int]]":
        """Queues records; the future holds their offsets once they are committed.

        Raises Overloaded if too many wait, and LogUnavailable if the log is, or was a moment ago, away; the
        future may hold LogUnavailable too.
        """
        done: Future[list[int]] = Future()
        with self._changed:
            if self.failing or self._behind or self._closing:
                raise LogUnavailable("the log can't be written at this moment")
            if self.waiting + len(records) > self._max_waiting:
                raise Overloaded(f"{self.waiting} events wait to be written, at most {self._max_waiting}")
            self.waiting += len(records)
            self._entries.append(_Entry(topic, records, done, 0))
            self._changed.notify()
        return done

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits to the log or, if it is away, to disk, and ends the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # --- in the thread ---

    def _run(self) -> None:
        self._adopt()
        while self._wait():
            if not self._turn():
                if self._closing:
                    break
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, self._retry_s)
            self._adopt()
        self._end()

    def _turn(self) -> bool:
        """Sends a batch; returns False if that failed, and keeps what waits."""
        try:
            if self._send_spooled() and self._send_batch():
                return True
        except Exception as error:  # the thread must survive: nothing else writes
            self._failed([], error)
        self._failures_in_a_row += 1
        if not self._closing:
            self._spool_waiting()
        return False

    def _wait(self) -> bool:
        """Waits for work; returns False at the end."""
        with self._changed:
            if not self._entries and not self._closing and not self.on_disk_bytes:
                self._changed.wait(None if self._spool is None else _ADOPT_EVERY_S)
            if self._closing:
                return bool(self._entries) and not self._behind
            return True

    def _adopt(self) -> None:
        """Adopts from time to time the spool files of replicas that ended."""
        now_s = time.monotonic()
        if self._spool is not None and now_s - self._adopted_s >= _ADOPT_EVERY_S:
            self._adopted_s = now_s
            try:
                self._spool.adopt()
            except Exception as error:  # no reason to refuse events: the log isn't away
                _LOG.warning("spool files can't be adopted", extra={"error": str(error)})
            self.on_disk_bytes = self._spool.pending

    def _send_spooled(self) -> bool:
        """Sends a batch from disk; returns False if that failed."""
        if self._spool is None or not self._spool.pending:
            return True
        try:
            waiting = self._without_forgotten(self._spool.peek(_BATCH))
        except LogUnavailable as error:
            self._failed([], error)
            return False
        for topic, group in groupby(waiting, key=lambda waiting: waiting[0]):
            try:
                self._append(topic, [record for _, record in group])
            except Exception as error:
                self._failed([], error)
                return False
        self._spool.mark_sent()
        self._failing_until_s, self._failures_in_a_row = 0.0, 0
        self.drops[TORN] = self._spool.torn
        self.on_disk_bytes = self._spool.pending
        with self._changed:
            self._behind = self._spool.own_pending > 0
        return True

    def _without_forgotten(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Leaves out records of users from before their erasure, which was requested meanwhile."""
        if self._control is None:
            self._control = Consumer(self._log, CONTROL, [0])
        for _, erasure in decoded(self._control.drain(), Erasure):
            if erasure.user_id != "":
                self._forgotten[str(erasure.user_id).encode()] = erasure.time_ms
        left = [(topic, record) for topic, record in waiting if not self._is_forgotten(record)]
        if len(left) < len(waiting):
            self.drops[FORGOTTEN] += len(waiting) - len(left)
        return left

    def _is_forgotten(self, record: Append) -> bool:
        erased_ms = self._forgotten.get(record.key)
        if erased_ms is None:
            return False
        try:
            return decode(record.value).time_ms <= erased_ms
        except UNREADABLE:
            return True

    def _send_batch(self) -> bool:
        """Sends a batch from memory, unless older records are on disk; returns False if that failed."""
        if self._behind:
            return True
        with self._changed:
            batch = [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]
        for topic, group in groupby(batch, key=lambda entry: entry.topic):
            entries = list(group)
            records = [record for entry in entries for record in entry.records]
            try:
                offsets = self._append(topic, records, all(e.done is None for e in entries))
            except Exception as error:  # of any kind: impressions are kept and events refused
                self._failed(batch[batch.index(entries[0]) :], error)
                return False
            self._settle(entries, offsets)
        return True

    def _append(self, topic: str, records: list[Append], droppable: bool = True) -> list[int]:
        """Appends; drops a record that the log never accepts, because it would block all behind it."""
        try:
            return self._log.append(topic, records)
        except ValueError as error:  # before any of them was appended
            if not droppable:
                raise
            if len(records) == 1:
                self.drops[REFUSED] += 1
                _LOG.error("an impression can't be logged", extra={"error": str(error)})
                return []
        return [offset for record in records for offset in self._append(topic, [record])]

    def _settle(self, entries: list[_Entry], offsets: list[int]) -> None:
        at, whole = 0, len(offsets) == sum(len(entry.records) for entry in entries)
        with self._changed:
            self._failing_until_s = 0.0
            self._failures_in_a_row = 0
            self.kept_bytes -= sum(entry.size for entry in entries)
            self.waiting -= sum(len(entry.records) for entry in entries if entry.done)
        for entry in entries:
            if entry.done is not None and entry.done.set_running_or_notify_cancel():
                entry.done.set_result(offsets[at : at + len(entry.records)])
            if entry.on_commit is not None and whole:
                entry.on_commit(offsets[at])
            at += len(entry.records)

    def _failed(self, entries: list[_Entry], error: Exception) -> None:
        _LOG.warning("append failed", extra={"error": str(error)})
        away = error if isinstance(error, LogUnavailable) else LogUnavailable(str(error))
        with self._changed:
            self.failures += 1
            self._failing_until_s = time.monotonic() + 2 * self._retry_s
            self._entries.extendleft(reversed([e for e in entries if e.done is None]))
            self.waiting -= sum(len(entry.records) for entry in entries if entry.done)
        for entry in entries:
            if entry.done is not None and entry.done.set_running_or_notify_cancel():
                entry.done.set_exception(away)

    def _spool_waiting(self) -> None:
        """Moves impressions from memory to disk after the second failure, so that they survive this process.
        What finds no room stays in memory."""
        if self._spool is None or self._failures_in_a_row < 2:
            return
        count = 0
        try:
            self._refuse_waiting()
            with self._changed:
                entries = list(self._entries)
            waiting: list[Waiting] = [(entry.topic, entry.records[0]) for entry in entries]
            count = self._spool.append(waiting)
        except Exception as error:  # all of it stays in memory
            self._failed([], error)
        finally:
            self.on_disk_bytes = self._spool.pending
            with self._changed:  # only this thread takes from the left
                for _ in range(count):
                    self.kept_bytes -= self._entries.popleft().size
                self._behind = self._spool.own_pending > 0

    def _refuse_waiting(self) -> None:
        """Fails the waiting events; from here on new ones are refused at once."""
        with self._changed:
            self._behind = True
            refused = [entry for entry in self._entries if entry.done is not None]
            self._entries = deque(entry for entry in self._entries if entry.done is None)
        if refused:
            self._failed(refused, LogUnavailable("the log is away"))

    def _end(self) -> None:
        """Spools what couldn't be sent, for another replica to adopt; counts what finds no room."""
        self._failures_in_a_row = 2
        self._spool_waiting()
        self._refuse_waiting()
        self.drops[CLOSED] += len(self._entries)
        if self._spool is not None:
            self._spool.close()
