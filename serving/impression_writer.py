"""One thread that appends to the log for the event loop, which must not wait for a disk.

All that waits goes out in one append: group commit. Order is kept, so that an impression stands before the
engagements with it. Events are acknowledged once committed; impressions are not waited for: while the log is
away they are kept, up to a limit, and sent when it is back. What is over the limit is refused and counted.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from recsys.log import Append, Log, LogUnavailable

_BATCH: Final = 500  # entries in one append
_RETRY_S: Final = 0.5


class Overloaded(RuntimeError):
    """More waits to be written than may: try again later."""


@dataclass(eq=False)
class _Entry:
    """Records of one caller. Without a future nobody waits for them, and they are kept."""

    topic: str
    records: Sequence[Append]
    done: "Future[list[int]] | None"
    size: int


class ImpressionWriter:
    """Appends in the background. ``keep_bytes``: the most impressions kept while the log is away;
    ``waiting``: the most events that may wait at a time. Counters are for metrics."""

    def __init__(
        self,
        log: Log,
        *,
        keep_bytes: int = 64 << 20,
        waiting: int = 20_000,
        retry_s: float = _RETRY_S,
    ) -> None:
        self._log, self._keep_bytes, self._most = log, keep_bytes, waiting
        self._retry_s = retry_s
        self._there = threading.Condition()
        self._entries: deque[_Entry] = deque()
        self._closing = False
        self._failing_until = 0.0
        self.kept_bytes = 0
        self.waiting = 0  # records that somebody waits for
        self.written = self.dropped = self.failures = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    @property
    def failing(self) -> bool:
        """Whether the newest append failed, a moment ago."""
        return time.monotonic() < self._failing_until

    def start(self) -> None:
        self._thread.start()

    def impression(self, topic: str, record: Append) -> bool:
        """Hands over a record that nobody waits for; False, and counted, where there is no room."""
        size = len(record.key) + len(record.value)
        with self._there:
            if self.kept_bytes + size > self._keep_bytes or self._closing:
                self.dropped += 1
                return False
            self.kept_bytes += size
            self._entries.append(_Entry(topic, [record], None, size))
            self._there.notify()
            return True

    def commit(self, topic: str, records: Sequence[Append]) -> "Future[list[int]]":
        """Hands over records; the future has their offsets once they are committed.

        Raises Overloaded where too many wait, LogUnavailable where the log is known to be away; the future
        may have LogUnavailable too.
        """
        done: Future[list[int]] = Future()
        with self._there:
            if self.failing or self._closing:
                raise LogUnavailable("the log can't be written at this moment")
            if self.waiting + len(records) > self._most:
                raise Overloaded(f"{self.waiting} events wait to be written, at most {self._most}")
            self.waiting += len(records)
            self._entries.append(_Entry(topic, records, done, 0))
            self._there.notify()
        return done

    def close(self, timeout_s: float = 5.0) -> None:
        """Writes what waits, if the log takes it in time, and ends."""
        with self._there:
            self._closing = True
            self._there.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._there:
                while not self._entries and not self._closing:
                    self._there.wait()
                if not self._entries:
                    return
                batch = [self._entries.popleft() for _ in range(min(_BATCH, len(self._entries)))]
            if not self._write(batch):
                with self._there:
                    if self._closing:
                        self.dropped += sum(entry.done is None for entry in self._entries)
                        return
                    self._there.wait_for(lambda: self._closing, self._retry_s)

    def _write(self, batch: list[_Entry]) -> bool:
        """Appends a batch topic by topic; what fails is kept or refused. False where something failed."""
        for topic, group in groupby(batch, key=lambda entry: entry.topic):
            entries = list(group)
            records = [record for entry in entries for record in entry.records]
            try:
                offsets = self._log.append(topic, records)
            except Exception as error:  # whatever it is, impressions are kept and events refused
                rest = batch[batch.index(entries[0]) :]
                self._failed(rest, error)
                return False
            self._settle(entries, offsets)
        return True

    def _settle(self, entries: list[_Entry], offsets: list[int]) -> None:
        at = 0
        with self._there:
            self._failing_until = 0.0
            self.written += len(offsets)
            self.kept_bytes -= sum(entry.size for entry in entries)
            self.waiting -= sum(len(entry.records) for entry in entries if entry.done)
        for entry in entries:
            if entry.done is not None and entry.done.set_running_or_notify_cancel():
                entry.done.set_result(offsets[at : at + len(entry.records)])
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
