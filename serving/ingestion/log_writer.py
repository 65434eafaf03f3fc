"""One thread that appends to the log for the event loop, which must not wait for a disk.

All that waits goes out in one append: group commit. Order is kept, so that an impression stands before the
engagements with it. Events are acknowledged once committed; impressions are not waited for: while the log is
away they are kept, in memory and then on disk, up to limits, and sent in order when it is back. Until then
events are refused: they would stand before impressions that they are about. What is over the limits, or can't
be appended ever, is dropped and counted.
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

from recsys.log.protocol import Append, Log, LogUnavailable
from serving.ingestion.disk_spool import DiskSpool, Waiting

_BATCH: Final = 500  # entries in one append
_RETRY_S: Final = 0.5
_ADOPT_S: Final = 5.0  # how often it looks for what other replicas left behind
FULL, CLOSED, REFUSED, TORN = "full", "closed", "refused", "torn"  # why impressions are dropped


class Overloaded(RuntimeError):
    """More waits to be written than may: try again later."""


@dataclass(eq=False)
class _Entry:
    """Records of one caller. Without a future nobody waits for them, and they are kept. ``told`` is given the
    offset of the first, unless it waited on disk."""

    topic: str
    records: Sequence[Append]
    done: "Future[list[int]] | None"
    size: int
    told: Callable[[int], None] | None = None


class LogWriter:
    """Appends in the background. ``keep_bytes``: the most impressions in memory; ``kept``: where more of them
    wait on disk while the log is away; ``waiting``: the most events that may wait at a time. Counters are for
    metrics."""

    def __init__(
        self,
        log: Log,
        *,
        keep_bytes: int = 64 << 20,
        waiting: int = 20_000,
        retry_s: float = _RETRY_S,
        kept: DiskSpool | None = None,
    ) -> None:
        self._log, self._keep_bytes, self._most = log, keep_bytes, waiting
        self._retry_s, self._kept = retry_s, kept
        self._there = threading.Condition()
        self._entries: deque[_Entry] = deque()
        self._closing = False
        self._failing_until = 0.0
        self._in_a_row = 0  # failures
        self._adopted_s = 0.0
        self.kept_bytes = 0  # in memory
        self.on_disk_bytes = 0  # as of a moment ago
        self.waiting = 0  # records that somebody waits for
        self.written = self.failures = 0
        self.drops: Counter[str] = Counter()
        self._behind = False  # whether impressions of our own wait on disk
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    @property
    def dropped(self) -> int:
        """Impressions that will never stand on the log."""
        return self.drops.total()

    @property
    def failing(self) -> bool:
        """Whether the newest append failed, a moment ago."""
        return time.monotonic() < self._failing_until

    def start(self) -> None:
        self._thread.start()

    def impression(
        self, topic: str, record: Append, told: Callable[[int], None] | None = None
    ) -> bool:
        """Hands over a record that nobody waits for; False, and counted, where there is no room. ``told`` is
        called with its offset by the thread, once it is committed: it neither waits nor raises."""
        size = len(record.key) + len(record.value)
        with self._there:
            if self._closing or self.kept_bytes + size > self._keep_bytes:
                self.drops[CLOSED if self._closing else FULL] += 1
                return False
            self.kept_bytes += size
            self._entries.append(_Entry(topic, [record], None, size, told))
            self._there.notify()
            return True

    def commit(self, topic: str, records: Sequence[Append]) -> "Future[list[int]]":
        """Hands over records; the future has their offsets once they are committed.

        Raises Overloaded where too many wait, LogUnavailable where the log is known to be away or was, a
        moment ago; the future may have LogUnavailable too.
        """
        done: Future[list[int]] = Future()
        with self._there:
            if self.failing or self._behind or self._closing:
                raise LogUnavailable("the log can't be written at this moment")
            if self.waiting + len(records) > self._most:
                raise Overloaded(f"{self.waiting} events wait to be written, at most {self._most}")
            self.waiting += len(records)
            self._entries.append(_Entry(topic, records, done, 0))
            self._there.notify()
        return done

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, to the log or, where it is away, to disk, and ends."""
        with self._there:
            self._closing = True
            self._there.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    # --- in the thread ---

    def _run(self) -> None:
        self._adopt()
        while self._wait():
            if not self._turn():
                if self._closing:
                    break
                with self._there:
                    self._there.wait_for(lambda: self._closing, self._retry_s)
            self._adopt()
        self._end()

    def _turn(self) -> bool:
        """Sends a batch; False where it failed, and what waits is kept."""
        try:
            if self._send_kept() and self._send_batch():
                return True
        except Exception as error:  # the thread goes on: without it nothing is ever written again
            self._failed([], error)
        self._in_a_row += 1
        if not self._closing:
            self._keep()
        return False

    def _wait(self) -> bool:
        """Waits for something to do; False once there is an end to it."""
        with self._there:
            if not self._entries and not self._closing and not self.on_disk_bytes:
                self._there.wait(None if self._kept is None else _ADOPT_S)
            if self._closing:
                return bool(self._entries) and not self._behind
            return True

    def _adopt(self) -> None:
        """Looks now and then for what a replica that ended left on disk."""
        now_s = time.monotonic()
        if self._kept is not None and now_s - self._adopted_s >= _ADOPT_S:
            self._adopted_s = now_s
            try:
                self._kept.adopt()
            except Exception as error:  # no reason to refuse events: the log isn't away
                logging.getLogger(__name__).warning("not adopted", extra={"error": str(error)})
            self.on_disk_bytes = self._kept.pending

    def _send_kept(self) -> bool:
        """Sends a batch of what waits on disk. False where it failed."""
        if self._kept is None or not self._kept.pending:
            return True
        for topic, group in groupby(self._kept.peek(_BATCH), key=lambda waiting: waiting[0]):
            try:
                self._append(topic, [record for _, record in group])
            except Exception as error:
                self._failed([], error)
                return False
        self._kept.sent_peeked()
        self._failing_until, self._in_a_row = 0.0, 0
        self.drops[TORN] = self._kept.torn
        self.on_disk_bytes = self._kept.pending
        with self._there:
            self._behind = self._kept.own_pending > 0
        return True

    def _send_batch(self) -> bool:
        """Sends what waits in memory, unless older of it waits on disk. False where it failed."""
        if self._behind:
            return True
        with self._there:
            batch = [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]
        return self._write(batch)

    def _write(self, batch: list[_Entry]) -> bool:
        """Appends a batch topic by topic; what fails is kept or refused. False where something failed."""
        for topic, group in groupby(batch, key=lambda entry: entry.topic):
            entries = list(group)
            records = [record for entry in entries for record in entry.records]
            try:
                offsets = self._append(topic, records, all(e.done is None for e in entries))
            except Exception as error:  # whatever it is, impressions are kept and events refused
                rest = batch[batch.index(entries[0]) :]
                self._failed(rest, error)
                return False
            self._settle(entries, offsets)
        return True

    def _append(self, topic: str, records: list[Append], droppable: bool = True) -> list[int]:
        """Appends. A record that the log never takes is dropped, else it would keep back all behind it."""
        try:
            return self._log.append(topic, records)
        except ValueError as error:  # before any of them was appended
            if not droppable:
                raise
            if len(records) == 1:
                self.drops[REFUSED] += 1
                logging.getLogger(__name__).error("not logged", extra={"error": str(error)})
                return []
        return [offset for record in records for offset in self._append(topic, [record])]

    def _settle(self, entries: list[_Entry], offsets: list[int]) -> None:
        at, whole = 0, len(offsets) == sum(len(entry.records) for entry in entries)
        with self._there:
            self._failing_until = 0.0
            self._in_a_row = 0
            self.written += len(offsets)
            self.kept_bytes -= sum(entry.size for entry in entries)
            self.waiting -= sum(len(entry.records) for entry in entries if entry.done)
        for entry in entries:
            if entry.done is not None and entry.done.set_running_or_notify_cancel():
                entry.done.set_result(offsets[at : at + len(entry.records)])
            if entry.told is not None and whole:
                entry.told(offsets[at])
            at += len(entry.records)

    def _failed(self, entries: list[_Entry], error: Exception) -> None:
        logging.getLogger(__name__).warning("append failed", extra={"error": str(error)})
        away = error if isinstance(error, LogUnavailable) else LogUnavailable(str(error))
        with self._there:
            self.failures += 1
            self._failing_until = time.monotonic() + 2 * self._retry_s
            self._entries.extendleft(reversed([e for e in entries if e.done is None]))
            self.waiting -= sum(len(entry.records) for entry in entries if entry.done)
        for entry in entries:
            if entry.done is not None and entry.done.set_running_or_notify_cancel():
                entry.done.set_exception(away)

    def _keep(self) -> None:
        """Puts on disk what waits in memory, once the log fails for the second time: then it outlives this
        process too. What finds no room stays in memory."""
        if self._kept is None or self._in_a_row < 2:
            return
        count = 0
        try:
            self._refuse_waiting()
            with self._there:
                entries = list(self._entries)
            waiting: list[Waiting] = [(entry.topic, entry.records[0]) for entry in entries]
            count = self._kept.put(waiting)
        except Exception as error:  # all of it stays in memory
            self._failed([], error)
        finally:
            self.on_disk_bytes = self._kept.pending
            with self._there:  # only this thread takes from the left
                for _ in range(count):
                    self.kept_bytes -= self._entries.popleft().size
                self._behind = self._kept.own_pending > 0

    def _refuse_waiting(self) -> None:
        """Nobody waits for a log that is away; from here on events are refused at once."""
        with self._there:
            self._behind = True
            refused = [entry for entry in self._entries if entry.done is not None]
            self._entries = deque(entry for entry in self._entries if entry.done is None)
        if refused:
            self._failed(refused, LogUnavailable("the log is away"))

    def _end(self) -> None:
        """What couldn't be sent stays on disk for who comes after; what finds no room there is counted."""
        self._in_a_row = 2
        self._keep()
        self._refuse_waiting()
        self.drops[CLOSED] += len(self._entries)
        if self._kept is not None:
            self._kept.close()
