"""The log as SQLite files, one per topic, for a laptop.

Several processes append and read concurrently; every thread has its own connection. Offsets are dense and
continue after everything was dropped.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

from recsys.clock import machine_ms, timer_of
from recsys.log import protocol
from recsys.log.protocol import Append, LogDamaged, LogUnavailable, Record
from recsys.log.record_crc import intact_records, is_intact, record_crc
from recsys.log.sqlite_files import INSERT, Connection, SqliteFiles
from recsys.log.sqlite_mark import Wakeup

SLICE: Final = 2_000  # records dropped per transaction: appends wait a few ms
_KEYS_AT_ONCE: Final = 10_000  # of a search: SQLite takes 32,766 parameters
RETAIN_EVERY_MS: Final = 1_000


class SqliteLog(SqliteFiles):
    """The log in a folder. ``durability``: "process" survives kill -9, "power" a power cut too.

    Raises LogLost if a topic's file was removed or belongs to another log, LogUnavailable if it can't be
    written for ``patience_s`` (full disk, a lock that is never released). ``clock`` gives append times, which
    retention uses.
    """

    def __init__(
        self, folder: str | Path, *, durability: str = "process", clock: Callable[[], int] = machine_ms,
        patience_s: float = 30.0,
    ) -> None:  # fmt: skip
        sync = {"process": "NORMAL", "power": "FULL"}[durability]
        super().__init__(Path(folder), sync, patience_s)
        self._clock, self._timer_ms = clock, timer_of(clock)
        self._retained_ms: dict[str, int] = {}

    # --- records ---

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        protocol.check_appends(topic, self.partitions(topic), records)
        if not records:
            return []
        now_ms = self._clock()
        rows, offsets = [], []
        with self.writing(topic) as connection:
            bounds = {p: list(connection.bounds(p)) for p in {r[0] for r in records}}
            for partition, key, value in records:
                place = bounds[partition]
                offset = place[1]
                place[1] += 1
                place[2] += len(key) + len(value)
                crc = record_crc(partition, offset, now_ms, key, value)
                rows.append((partition, offset, now_ms, key, value, crc))
                offsets.append(offset)
            connection.db.executemany(INSERT, rows)
            for partition, (begin, end, size) in bounds.items():
                connection.set_bounds(partition, begin, end, size)
        connection.seen = -1  # a connection's own commits don't change its data_version
        self._tidy(topic, now_ms)
        return offsets

    def read(self, topic: str, partition: int, offset: int, limit: int = 1000) -> list[Record]:
        connection = self.connection(topic)
        # The end before the records: what is appended meanwhile doesn't look like a hole.
        begin, end, _ = self._bounds(connection, topic, partition)
        protocol.check_range(topic, partition, offset, begin, end)
        if offset == end or limit <= 0:
            return []
        query = (
            "SELECT offset, key, value, time_ms, crc FROM records WHERE partition = ? AND offset >= ? "
            "ORDER BY offset LIMIT ?"
        )
        rows = self._query(connection, query, partition, offset, limit)
        if not rows or rows[0][0] != offset:
            begin, _, _ = self._bounds(connection, topic, partition)
            protocol.check_range(topic, partition, offset, begin, end)  # dropped meanwhile
        records = intact_records(partition, offset, rows)
        if len(records) < max(len(rows), min(end - offset, limit)):
            damaged = offset + len(records)
            raise LogDamaged(f"{topic}/{partition}", f"the record at offset {damaged}")
        return records

    def appended_ms(self, topic: str, partition: int, offset: int) -> int | None:
        """Append time of a record, by its writer's clock; None without such a record."""
        query = "SELECT key, value, time_ms, crc FROM records WHERE partition = ? AND offset = ?"
        # The end before the record, the beginning after it: as in ``read``.
        end = self.end(topic, partition)
        rows = self._query(self.connection(topic), query, partition, offset)
        for key, value, time_ms, crc in rows:
            if is_intact(crc, partition, offset, time_ms, key, value):
                return int(time_ms)
        if rows or self.begin(topic, partition) <= offset < end:
            raise LogDamaged(f"{topic}/{partition}", f"the record at offset {offset}")
        return None

    def begin(self, topic: str, partition: int) -> int:
        return self._bounds(self.connection(topic), topic, partition)[0]

    def end(self, topic: str, partition: int) -> int:
        return self._bounds(self.connection(topic), topic, partition)[1]

    def wait(self, topic: str, timeout_s: float) -> None:
        """Compares the file's version with that of this thread's last wait, so that nothing is missed."""
        connection, until_s = self.connection(topic), time.monotonic() + timeout_s
        wakeup = connection.wakeup = connection.wakeup or Wakeup(self.mark_path(topic))
        while True:
            seen = self._query(connection, "PRAGMA data_version")[0][0]
            left_s = until_s - time.monotonic()
            if seen != connection.seen or left_s <= 0:
                connection.seen = seen
                return
            wakeup.wait(left_s)

    # --- retention ---

    def trim(self, topic: str, partition: int, before: int) -> None:
        protocol.check_partition(topic, partition, self.partitions(topic))
        while True:
            with self.writing(topic) as connection:
                connection.check_settings()
                begin, end, _ = connection.bounds(partition)
                to = min(before, end, self._floor(connection, partition), begin + SLICE)
                if to <= begin:
                    break
                self._drop(connection, partition, to)
        while self.shrink(topic):
            pass

    def retain(self, topic: str, now_ms: int) -> int:
        connection = self.connection(topic)
        self.retry(connection.check_settings)
        query = "SELECT retention_ms, retention_bytes FROM about"
        [(keep_ms, keep_bytes)] = self._query(connection, query)
        if not keep_ms and not keep_bytes:
            return 0
        oldest_ms = now_ms - keep_ms if keep_ms else -1
        dropped = 0
        for partition in range(self.partitions(topic)):
            with self.writing(topic) as connection:
                dropped += self._slice(connection, partition, oldest_ms, keep_bytes)
        return dropped

    def hold(self, name: str, topic: str, partition: int, offset: int) -> None:
        with self.writing(topic) as connection:
            connection.check_settings()
            begin, end, _ = self._bounds(connection, topic, partition)
            protocol.check_range(topic, partition, offset, begin, end)
            change = "INSERT OR REPLACE INTO holds VALUES (?, ?, ?)"
            connection.db.execute(change, (name, partition, offset))
            connection.seal_settings()

    def release(self, name: str, topic: str, partition: int | None = None) -> None:
        with self.writing(topic) as connection:
            connection.check_settings()
            which = "name = ? AND partition = ifnull(?, partition)"
            connection.db.execute(f"DELETE FROM holds WHERE {which}", (name, partition))
            connection.seal_settings()

    def holds(self, topic: str, partition: int) -> dict[str, int]:
        connection = self.connection(topic)
        protocol.check_partition(topic, partition, connection.partitions)
        self.retry(connection.check_settings)
        query = "SELECT name, offset FROM holds WHERE partition = ?"
        return dict(self._query(connection, query, partition))

    # --- forgetting ---

    def keyed(self, topic: str, partition: int, keys: Collection[bytes], before: int) -> list[int]:
        connection = self.connection(topic)
        protocol.check_partition(topic, partition, connection.partitions)
        offsets, left = list[int](), list(keys)
        for start in range(0, len(left), _KEYS_AT_ONCE):
            some = left[start : start + _KEYS_AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"SELECT offset FROM records WHERE partition = ? AND offset < ? AND key IN ({marks})"
            rows = self._query(connection, query, partition, before, *some)
            offsets += [offset for (offset,) in rows]
        return sorted(offsets)

    def replace(self, topic: str, partition: int, records: Sequence[Record]) -> int:
        protocol.check_partition(topic, partition, self.partitions(topic))
        done = 0
        for start in range(0, len(records), SLICE):
            with self.writing(topic) as connection:
                # Zeroes freed bytes. Copies that a page split left in other pages remain: ``scrub`` removes
                # them.
                connection.db.execute("PRAGMA secure_delete = ON")
                for record in records[start : start + SLICE]:
                    done += self._replace(connection, partition, record)
        self.truncate_wal(topic)  # it has the old bytes too
        return done

    def _replace(self, connection: Connection, partition: int, record: Record) -> bool:
        at = (partition, record.offset)
        where = "WHERE partition = ? AND offset = ?"
        query = f"SELECT length(key) + length(value), time_ms FROM records {where}"
        row = connection.db.execute(query, at).fetchone()
        if row is None:
            return False
        crc = record_crc(*at, row[1], record.key, record.value)
        change = f"UPDATE records SET key = ?, value = ?, crc = ? {where}"
        connection.db.execute(change, (record.key, record.value, crc, *at))
        begin, end, size = connection.bounds(partition)
        size += len(record.key) + len(record.value) - row[0]
        connection.set_bounds(partition, begin, end, size)
        return True

    def _slice(self, connection: Connection, partition: int, oldest_ms: int, keep_bytes: int) -> int:
        begin, _, size = connection.bounds(partition)
        floor, to = self._floor(connection, partition), begin
        rows = connection.db.execute(
            "SELECT offset, time_ms, length(key) + length(value) FROM records WHERE partition = ? "
            "ORDER BY offset LIMIT ?",
            (partition, SLICE),
        )
        for offset, time_ms, length in rows:
            beyond = keep_bytes and size > keep_bytes
            if offset >= floor or not (time_ms < oldest_ms or beyond):
                break
            size -= length
            to = offset + 1
        rows.close()
        if to > begin:
            self._drop(connection, partition, to)
        return to - begin

    def _floor(self, connection: Connection, partition: int) -> int:
        """The lowest held offset."""
        query = "SELECT min(offset) FROM holds WHERE partition = ?"
        held = connection.db.execute(query, (partition,)).fetchone()[0]
        return 1 << 62 if held is None else held

    def _drop(self, connection: Connection, partition: int, to: int) -> None:
        where = "WHERE partition = ? AND offset < ?"
        query = f"SELECT total(length(key) + length(value)) FROM records {where}"
        size = connection.db.execute(query, (partition, to)).fetchone()[0]
        connection.db.execute(f"DELETE FROM records {where}", (partition, to))
        _, end, before = connection.bounds(partition)
        connection.set_bounds(partition, to, end, before - int(size))

    def _tidy(self, topic: str, now_ms: int) -> None:
        """Applies retention from time to time (continuously while it drops), and bounds the WAL."""
        timer_ms = now_ms if self._timer_ms is self._clock else self._timer_ms()
        with contextlib.suppress(LogUnavailable):  # this append succeeded; the next one will raise
            if abs(timer_ms - self._retained_ms.get(topic, 0)) >= RETAIN_EVERY_MS:
                dropped = self.retain(topic, now_ms)
                self._retained_ms[topic] = 0 if self.shrink(topic) or dropped else timer_ms
            self.bound_wal(topic)

    def _bounds(self, connection: Connection, topic: str, partition: int) -> tuple[int, int, int]:
        """(begin, end, bytes)."""
        protocol.check_partition(topic, partition, connection.partitions)
        return self.retry(lambda: connection.bounds(partition))

    def _query(self, connection: Connection, query: str, *values: object) -> list[Any]:
        return self.retry(lambda: connection.db.execute(query, values).fetchall())
