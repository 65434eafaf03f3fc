"""The files under the SQLite log: a catalogue with the log's id, and one WAL file per topic.

Knows files, connections, locks and transactions; what stands in them is ``recsys.log.sqlite_log``'s business.
The folder must be on a local disk: WAL needs shared memory, which network file systems don't give. Open it
after a fork, never before.
"""

import contextlib
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

from recsys.log.protocol import LogLost, LogUnavailable, Topic, check_partitions, no_topic

T = TypeVar("T")

# An example of the feed takes 2.7 KB and goes into a page with others; at SQLite's own 4 KB each record above
# 1 KB takes a page for itself.
PAGE_BYTES: Final = 16_384
CHECKPOINT_PAGES: Final = 1_000  # copy the WAL back at 16 MB: larger saves syncs and costs space
WAL_BYTES: Final = 64 << 20  # with readers always there the WAL may not start over: cut it here
CUT_PATIENCE_MS: Final = 200
_ROOM: Final = 3  # files: a new one is made aside, and goes through the WAL
RETRY_S: Final = (
    0.0005  # SQLite's own wait goes up to 100 ms, which writers of other processes feel
)
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

_CATALOGUE: Final = """
    CREATE TABLE IF NOT EXISTS log (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS topics (name TEXT PRIMARY KEY, partitions INTEGER NOT NULL)
"""
_TOPIC: Final = """
    CREATE TABLE about (log_id TEXT, partitions INTEGER, retention_ms INTEGER, retention_bytes INTEGER);
    CREATE TABLE records (partition INTEGER, offset INTEGER, time_ms INTEGER, key BLOB, value BLOB,
        PRIMARY KEY (partition, offset)) WITHOUT ROWID;
    CREATE TABLE bounds (partition INTEGER PRIMARY KEY, begin INTEGER, end INTEGER, bytes INTEGER);
    CREATE TABLE holds (name TEXT, partition INTEGER, offset INTEGER, PRIMARY KEY (name, partition))
        WITHOUT ROWID;
"""


class Connection:
    """One thread's connection to one topic. ``seen``: the file's version when ``wait`` last looked."""

    def __init__(self, db: sqlite3.Connection, partitions: int) -> None:
        self.db, self.partitions, self.seen = db, partitions, -1

    def __del__(self) -> None:
        self.db.close()


class SqliteFiles:
    """Makes, finds and opens the files. Raises LogLost where a topic's file is gone or another log's."""

    def __init__(self, folder: Path, sync: str, patience_s: float) -> None:
        self.folder, self._sync, self._patience_s = folder, sync, patience_s
        self._local = threading.local()
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._turns: dict[str, threading.Lock] = {}  # threads take turns here, not by polling
        self._commits = 0
        folder.mkdir(parents=True, exist_ok=True)
        with self._catalogue() as db:
            for statement in _CATALOGUE.split(";"):
                db.execute(statement)
            db.execute("INSERT OR IGNORE INTO log VALUES (1, ?)", (uuid.uuid4().hex,))
            self.id: str = db.execute("SELECT id FROM log").fetchone()[0]

    def create(self, topic: Topic) -> None:
        """Makes the topic's file and names it in the catalogue, or checks and updates the one there."""
        with self._catalogue() as db:
            row = db.execute(
                "SELECT partitions FROM topics WHERE name = ?", (topic.name,)
            ).fetchone()
            if row is not None:
                check_partitions(topic, row[0])
            else:
                if not self.path(topic.name).exists():  # else from a crash between these two lines
                    self._make(topic)
                db.execute("INSERT INTO topics VALUES (?, ?)", (topic.name, topic.partitions))
        check_partitions(topic, self.connection(topic.name).partitions)
        with self.writing(topic.name) as there:
            there.db.execute(
                "UPDATE about SET retention_ms = ?, retention_bytes = ?",
                (topic.retention_ms, topic.retention_bytes),
            )

    def path(self, topic: str) -> Path:
        return self.folder / f"{topic}.sqlite"

    def connection(self, topic: str) -> Connection:
        """This thread's connection. Raises KeyError where there is no such topic."""
        try:
            there: Connection = self._local.topics[topic]
            return there
        except AttributeError:
            self._local.topics = {}
        except KeyError:
            pass
        there = self._connect(topic)
        self._local.topics[topic] = there
        self._open.add(there)
        return there

    @contextlib.contextmanager
    def writing(self, topic: str) -> Iterator[Connection]:
        """A transaction that holds the topic's one write lock; rolled back on an error."""
        there = self.connection(topic)
        with self._turns.setdefault(topic, threading.Lock()), self.transaction(there.db):
            yield there

    @contextlib.contextmanager
    def transaction(self, db: sqlite3.Connection) -> Iterator[None]:
        self.patiently(lambda: db.execute("BEGIN IMMEDIATE"))
        try:
            yield
            self.patiently(lambda: db.execute("COMMIT"))
        except BaseException as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            if isinstance(error, sqlite3.DatabaseError):
                raise self._unusable(error) from error
            raise

    def patiently(self, act: Callable[[], T]) -> T:
        """Tries again while another process holds a lock; raises LogUnavailable in the end."""
        deadline: float | None = None
        while True:
            try:
                return act()
            except sqlite3.DatabaseError as error:
                now = time.monotonic()
                deadline = now + self._patience_s if deadline is None else deadline
                busy = (error.sqlite_errorcode or 0) & 0xFF in _BUSY
                if not busy or now > deadline:
                    raise self._unusable(error) from error
            time.sleep(RETRY_S)

    def bound_wal(self, topic: str) -> None:
        """Called after an append. SQLite starts the WAL over only when no reader is in it; where readers
        always are, it grows, and is cut here: it waits for those that are in it, new ones needn't it."""
        self._commits += 1
        wal = self.folder / f"{topic}.sqlite-wal"
        if self._commits % 16 == 0 and wal.exists() and wal.stat().st_size > WAL_BYTES:
            self.cut_wal(topic)

    def cut_wal(self, topic: str) -> bool:
        """Copies the WAL back and cuts it; False where a reader is in it for longer than
        ``CUT_PATIENCE_MS``."""
        db, busy = self.connection(topic).db, 1
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute(f"PRAGMA busy_timeout = {CUT_PATIENCE_MS}")
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        db.execute("PRAGMA busy_timeout = 0")
        return not busy

    def rewrite(self, topic: str) -> bool:
        """Writes the file anew, with what a query finds and nothing else: free space in a page, too, has
        copies of what once stood there. False where the disk has no room for it, or a reader stays in the
        WAL, which has the old pages."""
        db = self.connection(topic).db
        with self._turns.setdefault(topic, threading.Lock()):
            if shutil.disk_usage(self.folder).free < _ROOM * self.path(topic).stat().st_size:
                return False
            self.patiently(lambda: db.execute("VACUUM"))
            return self.cut_wal(topic)

    def close(self) -> None:
        """Closes the connections of all threads; none may be in use."""
        for there in list(self._open):
            there.db.close()
        self._open.clear()
        self._local = threading.local()

    def _unusable(self, error: sqlite3.DatabaseError) -> LogUnavailable:
        return LogUnavailable(
            f"the log in {self.folder} can't be used: {error}. See that its disk has space and is local, and "
            "that no other program keeps its files locked"
        )

    def _connect(self, topic: str) -> Connection:
        path = self.path(topic)
        if not path.exists():
            with self._catalogue() as db:
                names = {name for (name,) in db.execute("SELECT name FROM topics")}
            if topic not in names:
                raise no_topic(topic, names)
            raise LogLost(f"{path} is gone, but the log in {self.folder} had it: restore the file, "
                          "or start with a new state folder")  # fmt: skip
        db = _open(path)
        self.patiently(lambda: db.execute(f"PRAGMA synchronous = {self._sync}"))
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        log_id, partitions = self.patiently(
            lambda: db.execute("SELECT log_id, partitions FROM about").fetchone()
        )
        if log_id != self.id:
            db.close()
            raise LogLost(f"{path} belongs to log {log_id}, this one is {self.id}: files of two logs are "
                          "mixed; start with a new state folder")  # fmt: skip
        return Connection(db, partitions)

    def _make(self, topic: Topic) -> None:
        """Makes the file aside and renames it, so that nobody sees half of one."""
        aside = self.folder / f".{topic.name}.{uuid.uuid4().hex}"
        db = _open(aside)
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(f"BEGIN; {_TOPIC} COMMIT;")
        about = (self.id, topic.partitions, topic.retention_ms, topic.retention_bytes)
        db.execute("INSERT INTO about VALUES (?, ?, ?, ?)", about)
        db.executemany(
            "INSERT INTO bounds VALUES (?, 0, 0, 0)", [(p,) for p in range(topic.partitions)]
        )
        db.close()  # the last connection: the WAL goes into the file
        os.replace(aside, self.path(topic.name))
        folder = os.open(self.folder, os.O_RDONLY)
        os.fsync(folder)  # the name too outlives a power cut
        os.close(folder)

    @contextlib.contextmanager
    def _catalogue(self) -> Iterator[sqlite3.Connection]:
        """The catalogue in a transaction: one process at a time. Not in WAL mode, it is used so rarely."""
        db = _open(self.folder / "catalogue.db")
        try:
            with self.transaction(db):
                yield db
        finally:
            db.close()


def _open(path: Path) -> sqlite3.Connection:
    # Threads keep to their own; the check would only keep close() from closing them all.
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
