"""Files of the SQLite log: a catalogue with the log's id, and one WAL-mode file per topic.

The folder must be on a local disk: WAL needs shared memory, which network file systems lack. Open it after a
fork, never before.

Every row has a checksum. ``bounds`` has one row per partition and one that counts commits. A mark beside each
file (see ``sqlite_mark``) shows commits that SQLite lost.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from recsys.clock import machine_ms
from recsys.log import protocol
from recsys.log.protocol import LogDamaged, LogLost, LogUnavailable, Topic
from recsys.log.record_crc import record_crc, row_crc
from recsys.log.sqlite_mark import Mark, Wakeup

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

# An example of the feed takes 2.7 KB and shares a page with others; with SQLite's default of 4 KB each record
# above 1 KB takes its own page.
PAGE_BYTES: Final = 16_384
CHECKPOINT_PAGES: Final = 1_000  # copies the WAL back at 16 MB: more saves syncs and costs space
WAL_BYTES: Final = 64 << 20  # constant readers may prevent the WAL from restarting: truncated here
CUT_PATIENCE_MS: Final = 200
FREE_SHARE: Final = 0.25  # of a file's pages that stay for new records
VACUUM_PAGES: Final = 256  # given back per transaction: appends wait a few ms
_ROOM: Final = 3  # files: the new copy is made aside and goes through the WAL
RETRY_S: Final = 0.0005  # SQLite's own wait is up to 100 ms, which delays other processes' writers
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
FORMAT: Final = 2
INSERT: Final = "INSERT INTO records (partition, offset, time_ms, key, value, crc) VALUES (?, ?, ?, ?, ?, ?)"
COMMITS: Final = -1  # the "partition" of ``bounds`` whose ``end`` counts commits

CATALOGUE: Final = "catalogue.db"
_CATALOGUE: Final = """
    CREATE TABLE IF NOT EXISTS log (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, partitions INTEGER NOT NULL)
"""
# Rows lie beside their index: in a table WITHOUT ROWID, SQLite reads a record that overflows its page whole
# for each comparison of keys.
_TOPIC: Final = f"""
    CREATE TABLE about (log_id TEXT, partitions INTEGER, retention_ms INTEGER, retention_bytes INTEGER,
        crc INTEGER);
    CREATE TABLE records (partition INTEGER NOT NULL, offset INTEGER NOT NULL, time_ms INTEGER, key BLOB,
        value BLOB, crc INTEGER, PRIMARY KEY (partition, offset));
    CREATE TABLE bounds (partition INTEGER PRIMARY KEY, begin INTEGER, end INTEGER, bytes INTEGER,
        crc INTEGER);
    CREATE TABLE holds (name TEXT, partition INTEGER, offset INTEGER, PRIMARY KEY (name, partition))
        WITHOUT ROWID;
    PRAGMA user_version = {FORMAT};
"""


class Connection:
    """One thread's connection to one topic. ``seen``: the file's version at the last ``wait``; ``ends``: by
    partition, set by the transaction."""

    def __init__(self, topic: str, db: sqlite3.Connection) -> None:
        self.topic, self.db, self.partitions, self.seen = topic, db, 0, -1
        self.wakeup: Wakeup | None = None  # of the thread's waits
        self.ends: dict[int, int] = {}

    def bounds(self, partition: int) -> tuple[int, int, int]:
        """(begin, end, bytes). Raises LogDamaged."""
        query = "SELECT begin, end, bytes, crc FROM bounds WHERE partition = ?"
        row = self.db.execute(query, (partition,)).fetchone()
        if row is None or row[3] != row_crc(partition, *row[:3]):
            raise LogDamaged(self.topic, f"the table of bounds, at partition {partition}")
        begin, end, size, _ = row
        return begin, end, size

    def set_bounds(self, partition: int, begin: int, end: int, size: int) -> None:
        self.ends[partition] = end
        change = "UPDATE bounds SET begin = ?, end = ?, bytes = ?, crc = ? WHERE partition = ?"
        crc = row_crc(partition, begin, end, size)
        self.db.execute(change, (begin, end, size, crc, partition))

    def check_settings(self) -> None:
        """Raises LogDamaged if the topic's settings or holds don't have their checksum."""
        with self._one_state():
            stored = self.db.execute("SELECT crc FROM about").fetchone()
            crc = self._settings_crc()
        if stored is None or stored[0] != crc:
            raise LogDamaged(self.topic, "the table of settings or of holds")

    def seal_settings(self) -> None:
        """Call it after each change of settings or holds."""
        self.db.execute("UPDATE about SET crc = ?", (self._settings_crc(),))

    @contextlib.contextmanager
    def _one_state(self) -> Iterator[None]:
        """Statements within read one state of the file, whatever others commit meanwhile."""
        if self.db.in_transaction:
            yield
            return
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def _settings_crc(self) -> int:
        columns = "log_id, partitions, retention_ms, retention_bytes"
        holds = self.db.execute("SELECT * FROM holds ORDER BY name, partition").fetchall()
        return row_crc(self.db.execute(f"SELECT {columns} FROM about").fetchall(), holds)

    def __del__(self) -> None:
        self.db.close()


class SqliteFiles:
    """Base of ``SqliteLog``: files, connections, locks and transactions, but not the records. Raises LogLost
    if a topic's file is missing or belongs to another log."""

    def __init__(self, folder: Path, sync: str, patience_s: float) -> None:
        self.folder, self._sync, self._patience_s = folder, sync, patience_s
        self._local = threading.local()
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        # By topic, so that threads don't poll SQLite's lock.
        self._write_locks: dict[str, threading.Lock] = {}
        self._marks: dict[str, Mark] = {}
        self._commits = 0
        folder.mkdir(parents=True, exist_ok=True)
        with self._catalogue() as db:
            self.id = fill_catalogue(db, uuid.uuid4().hex)

    def create(self, topic: Topic) -> None:
        """Creates the topic's file and catalogue entry, or checks and updates the existing ones."""
        with self._catalogue() as db:
            query = "SELECT partitions FROM topics WHERE name = ?"
            row = db.execute(query, (topic.name,)).fetchone()
            if row is not None:
                protocol.check_partitions(topic, row[0])
            else:
                if not self.path(topic.name).exists():  # else left by a crash before the INSERT
                    self._make(topic)
                db.execute("INSERT INTO topics VALUES (?, ?)", (topic.name, topic.partitions))
        protocol.check_partitions(topic, self.connection(topic.name).partitions)
        with self.writing(topic.name) as connection:
            change = "UPDATE about SET retention_ms = ?, retention_bytes = ?"
            connection.db.execute(change, (topic.retention_ms, topic.retention_bytes))
            connection.seal_settings()

    def partitions(self, topic: str) -> int:
        return self.connection(topic).partitions

    def path(self, topic: str) -> Path:
        return self.folder / f"{topic}.sqlite"

    def mark_path(self, topic: str) -> Path:
        return self.folder / f"{topic}.mark"

    def connection(self, topic: str) -> Connection:
        """This thread's connection. Raises KeyError for an unknown topic."""
        try:
            connection: Connection = self._local.topics[topic]
            return connection
        except AttributeError:
            self._local.topics = {}
        except KeyError:
            pass
        connection = self._connect(topic)
        self._local.topics[topic] = connection
        self._open.add(connection)
        return connection

    @contextlib.contextmanager
    def writing(self, topic: str) -> Iterator[Connection]:
        """A transaction with the topic's write lock; rolled back on an error."""
        connection = self.connection(topic)
        with self._write_locks.setdefault(topic, threading.Lock()):
            with self.transaction(connection.db):
                before = connection.db.total_changes
                connection.ends = {}
                yield connection
                changed = connection.db.total_changes > before
                if changed:
                    _, commits, _ = connection.bounds(COMMITS)
                    connection.set_bounds(COMMITS, 0, commits + 1, 0)
            if changed:
                self._marks[topic].advance(connection.ends)

    @contextlib.contextmanager
    def transaction(self, db: sqlite3.Connection) -> Iterator[None]:
        self.retry(lambda: db.execute("BEGIN IMMEDIATE"))
        try:
            yield
            self.retry(lambda: db.execute("COMMIT"))
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError):
                raise self._unusable(error) from error
            raise

    def retry(self, act: Callable[[], T]) -> T:
        """Retries while another process holds a lock; raises LogUnavailable after ``patience_s``."""
        deadline: float | None = None
        while True:
            try:
                return act()
            except sqlite3.DatabaseError as error:
                now = time.monotonic()
                deadline = now + self._patience_s if deadline is None else deadline
                busy = _code(error) in _BUSY
                if not busy or now > deadline:
                    raise self._unusable(error) from error
            time.sleep(RETRY_S)

    def bound_wal(self, topic: str) -> None:
        """Truncates a large WAL after an append. SQLite restarts it only while it has no readers; with
        constant readers it grows. Truncation waits for current readers; new ones don't need the WAL."""
        self._commits += 1
        wal = self.folder / f"{topic}.sqlite-wal"
        if self._commits % 16 == 0 and wal.exists() and wal.stat().st_size > WAL_BYTES:
            self.truncate_wal(topic)

    def truncate_wal(self, topic: str) -> bool:
        """Copies the WAL back and truncates it; False if a reader uses it for too long."""
        db, busy = self.connection(topic).db, 1
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute(f"PRAGMA busy_timeout = {CUT_PATIENCE_MS}")
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        db.execute("PRAGMA busy_timeout = 0")
        return not busy

    def scrub(self, topic: str) -> bool:
        """Rewrites the file without old data, of which free space in pages has copies. False if the disk has
        no room, or a reader keeps the WAL, which has the old pages."""
        db = self.connection(topic).db
        with self._write_locks.setdefault(topic, threading.Lock()):
            if shutil.disk_usage(self.folder).free < _ROOM * self.path(topic).stat().st_size:
                return False
            self.retry(lambda: db.execute("VACUUM"))
            return self.truncate_wal(topic)

    def shrink(self, topic: str) -> bool:
        """Gives a slice of a file's free pages back to the disk, if it has many; False if it hasn't."""
        db = self.connection(topic).db
        names = "freelist_count", "page_count"
        free, pages = self.retry(lambda: [db.execute(f"PRAGMA {n}").fetchone()[0] for n in names])
        if free <= FREE_SHARE * pages + VACUUM_PAGES:
            return False
        with self._write_locks.setdefault(topic, threading.Lock()):
            # A script runs to its end; ``execute`` would end after the first page.
            self.retry(lambda: db.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})"))
        return True

    def close(self) -> None:
        """Closes the connections of all threads; none may be in use."""
        for connection in list(self._open):
            connection.db.close()
        self._open.clear()
        self._marks.clear()
        self._local = threading.local()

    def _unusable(self, error: sqlite3.DatabaseError) -> LogUnavailable:
        if _code(error) in _DAMAGED:
            return LogDamaged(str(self.folder), f"a file ({error})")
        return LogUnavailable(
            f"the log in {self.folder} can't be used: {error}. See that its disk has space and is local, and "
            "that no other program locks its files"
        )

    def _connect(self, topic: str) -> Connection:
        path = self.path(topic)
        if not path.exists():
            with self._catalogue() as db:
                names = {name for (name,) in db.execute("SELECT name FROM topics")}
            if topic not in names:
                raise protocol.no_topic(topic, names)
            raise LogLost(
                f"{path} is gone, but the log in {self.folder} had it: restore the file, or start with a "
                "new state folder"
            )
        connection = Connection(topic, open_file(path))
        self.retry(lambda: connection.db.execute(f"PRAGMA synchronous = {self._sync}"))
        connection.db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.db.execute("PRAGMA cell_size_check = ON")
        self.retry(lambda: self._check(connection))
        return connection

    def _check(self, connection: Connection) -> None:
        """Checks a topic's file and sets ``partitions``."""
        topic, path, db = connection.topic, self.path(connection.topic), connection.db
        mark = Mark(self.mark_path(topic))
        marked = mark.read()  # first: commits go on meanwhile
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version != FORMAT:
            raise LogUnavailable(
                f"{path} has format {version}, expected {FORMAT}: another version wrote it (use that one, or "
                "a new state folder), or the file is damaged (see `recsys check`)"
            )
        connection.check_settings()
        about = db.execute("SELECT log_id, partitions FROM about")
        log_id, connection.partitions = about.fetchone()
        if log_id != self.id:
            raise LogLost(
                f"{path} belongs to log {log_id}, this one is {self.id}: files of two logs are mixed; start "
                "with a new state folder"
            )
        ends = {p: connection.bounds(p)[1] for p in (COMMITS, *range(connection.partitions))}
        missing = marked.ends.get(COMMITS, 0) - ends[COMMITS] if marked else 0
        if missing > 0 and marked and (marked.this_boot or self._sync == "FULL"):
            what = f"the write-ahead file: its newest {missing} commits are missing"
            raise LogDamaged(topic, what)
        if missing > 0:
            _LOG.warning(
                "topic %s: its newest %d commits are missing, the machine stopped before they were on disk; "
                "log.durability: power prevents this",
                topic,
                missing,
            )
            self._fill(connection, marked.ends if marked else {})
        if marked is None or not marked.this_boot:
            mark.reset({p: connection.bounds(p)[1] for p in ends})
        self._marks.setdefault(topic, mark)

    def _fill(self, connection: Connection, ends: dict[int, int]) -> None:
        """Puts empty records, which readers skip and count, in the places of those that are lost: other files
        may name their offsets, which must not be given twice."""
        now_ms = machine_ms()
        with self.transaction(connection.db):
            for p in range(connection.partitions):
                begin, end, size = connection.bounds(p)
                lost = range(end, ends.get(p, end))
                rows = [(p, at, now_ms, b"", b"", record_crc(p, at, now_ms)) for at in lost]
                connection.db.executemany(INSERT, rows)
                connection.set_bounds(p, begin, end + len(rows), size)

    def _make(self, topic: Topic) -> None:
        """Creates the file under another name and renames it, so that it appears complete."""
        aside = self.folder / f".{topic.name}.{uuid.uuid4().hex}"
        make_file(aside, self.id, topic)
        os.replace(aside, self.path(topic.name))
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)  # so that the name survives a power cut too
        os.close(folder)

    @contextlib.contextmanager
    def _catalogue(self) -> Iterator[sqlite3.Connection]:
        """The catalogue in a transaction, for one process at a time. Rarely used, so not in WAL mode."""
        db = open_file(self.folder / CATALOGUE)
        try:
            with self.transaction(db):
                yield db
        finally:
            db.close()


def _code(error: sqlite3.DatabaseError) -> int:
    """SQLite's error code. Python's own error for text that isn't UTF-8 has none."""
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def fill_catalogue(db: sqlite3.Connection, new_id: str) -> str:
    """Creates what a catalogue lacks; returns the log's id."""
    for statement in _CATALOGUE.split(";"):
        db.execute(statement)
    db.execute("INSERT OR IGNORE INTO log VALUES (1, ?)", (new_id,))
    log_id: str = db.execute("SELECT id FROM log").fetchone()[0]
    return log_id


def make_file(path: Path, log_id: str, topic: Topic) -> None:
    """Creates the file of an empty topic."""
    db = open_file(path)
    db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(f"BEGIN; {_TOPIC} COMMIT;")
    about = (log_id, topic.partitions, topic.retention_ms, topic.retention_bytes)
    db.execute("INSERT INTO about VALUES (?, ?, ?, ?, NULL)", about)
    bounds = [(p, row_crc(p, 0, 0, 0)) for p in (COMMITS, *range(topic.partitions))]
    db.executemany("INSERT INTO bounds VALUES (?, 0, 0, 0, ?)", bounds)
    Connection(topic.name, db).seal_settings()
    db.close()  # the last connection: the WAL goes into the file


def open_file(path: Path) -> sqlite3.Connection:
    # Each thread uses its own connection; the check would only prevent close() from closing them all.
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
