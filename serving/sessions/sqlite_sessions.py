"""Session store in a file of the state folder: for one process, and to hand folded sessions over to another
store.

One transaction writes the sessions and the fold's position, so the two agree after any crash. Without the
file the fold begins anew, from the log and the archive.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from recsys.events.hashing import Id, partition_of
from recsys.process.worker_share import WHOLE, Share
from serving.sessions.session_store import (
    FoldPosition,
    FoldStore,
    StoreUnavailable,
    check_position,
    decode_position,
    expanded,
    shrunk,
)

FILE: Final = "sessions.sqlite"  # in the state folder
_AT_ONCE: Final = 500  # sessions that are read or handed over at once
_BUSY_S: Final = 10.0
_EXPIRE_EVERY: Final = 1_000  # commits
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS sessions (
    feature_set TEXT, user TEXT, until_ms INTEGER, session BLOB, lasting BLOB, PRIMARY KEY (feature_set, user)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (feature_set TEXT PRIMARY KEY, position BLOB) WITHOUT ROWID;
"""


class _Connection:
    """A connection to the file. Each belongs to one thread at a time."""

    def __init__(self, file: Path, now_ms: Callable[[], int], name: str) -> None:
        self._file, self._now_ms, self._name = file, now_ms, name
        with self._available("opened"):
            self._db = sqlite3.connect(file, _BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # a power cut may take the newest commits
            self._db.execute("PRAGMA secure_delete = ON")  # nothing of a deleted user stays in the file
            self._db.executescript(_TABLES)

    @contextmanager
    def _available(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # a full disk, a lock that isn't released
            raise StoreUnavailable(f"{self._file} can't be {action}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{self._file} is damaged ({error}): remove it, then sessions are folded anew from the log"
            ) from error

    def _position(self) -> FoldPosition | None:
        with self._available("read"):
            query = "SELECT position FROM positions WHERE feature_set = ?"
            row = self._db.execute(query, (self._name,)).fetchone()
        return decode_position(row and row[0])

    def load(self, user_ids: Sequence[Id]) -> list[bytes | None]:
        """Packed sessions, or what outlived them, in order; None without either."""
        names, blobs = [str(user_id) for user_id in user_ids], dict[str, bytes | None]()
        for at in range(0, len(names), _AT_ONCE):
            some = names[at : at + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = (
                "SELECT user, CASE WHEN until_ms > ? THEN session ELSE lasting END FROM sessions "
                f"WHERE feature_set = ? AND user IN ({marks})"
            )
            with self._available("read"):
                blobs |= dict(self._db.execute(query, (self._now_ms(), self._name, *some)))
        return [expanded(blobs.get(name) or None) for name in names]


class SqliteSessions(_Connection):
    """SessionReader. A read takes some ten microseconds, so it is made in the event loop."""

    async def get(self, user_id: Id) -> bytes | None:
        return self.load([user_id])[0]

    async def folded_to(self, partitions: int) -> FoldPosition | None:
        return self._position()

    def of_set(self, name: str) -> "SqliteSessions":
        return SqliteSessions(self._file, self._now_ms, name)

    async def close(self) -> None:
        self._db.close()


class SqliteFoldStore(_Connection):
    """FoldStore of one feature set. ``now_ms``: the clock by which sessions that nobody writes expire after
    ``ttl_s``."""

    def __init__(self, file: Path, now_ms: Callable[[], int], ttl_s: int, name: str = "") -> None:
        super().__init__(file, now_ms, name)
        self._ttl_ms, self._commits = 1000 * ttl_s, 0

    def position(self) -> FoldPosition | None:
        return self._position()

    def commit(
        self, before: FoldPosition | None, after: FoldPosition, sessions: Mapping[str, bytes],
        gone: Collection[str] = (), lasting: Mapping[str, bytes] = {},
    ) -> None:  # fmt: skip
        until_ms = self._now_ms() + self._ttl_ms
        rows = [
            (self._name, user, until_ms, shrunk(blob), shrunk(lasting.get(user, b"")))
            for user, blob in sessions.items()
        ]
        with self._transaction():
            check_position(before, self.position())
            self._db.executemany("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?)", rows)
            removed = [(self._name, user) for user in gone]
            self._db.executemany("DELETE FROM sessions WHERE feature_set = ? AND user = ?", removed)
            place = self._name, msgspec.msgpack.encode(after)
            self._db.execute("INSERT OR REPLACE INTO positions VALUES (?, ?)", place)
            if self._commits % _EXPIRE_EVERY == 0:
                self._expire()
        self._commits += 1

    def remove(self) -> None:
        with self._transaction():
            for table in ("sessions", "positions"):
                self._db.execute(f"DELETE FROM {table} WHERE feature_set = ?", (self._name,))

    def scrub(self) -> bool:
        """Removes what the write-ahead file still holds of deleted sessions. False while it is being read."""
        with self._available("written"):
            busy: int = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def close(self) -> None:
        self._db.close()

    def sessions_of(self, partitions: Collection[int], count: int) -> Iterator[tuple[str, bytes, bytes]]:
        """User, packed session and what outlives it, of all users of ``partitions`` out of ``count``. An
        expired session is empty."""
        query = "SELECT user, until_ms, session, lasting FROM sessions WHERE feature_set = ?"
        now_ms = self._now_ms()
        with self._available("read"):
            for user, until_ms, session, lasting in self._db.execute(query, (self._name,)):
                if partition_of(user, count) in partitions:
                    living = expanded(session) if until_ms > now_ms else None
                    yield user, living or b"", expanded(lasting) or b""

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._available("written"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _expire(self) -> None:
        """Removes what expired: where something outlives a session, the session alone."""
        now_ms = self._now_ms()
        self._db.execute("DELETE FROM sessions WHERE until_ms <= ? AND lasting = x''", (now_ms,))
        self._db.execute("UPDATE sessions SET session = x'' WHERE until_ms <= ?", (now_ms,))


def hand_over(source: SqliteFoldStore, target: FoldStore, share: Share = WHOLE) -> int:
    """Copies the sessions of a share to a store that is behind ``source``, with the position; returns their
    number. A kill leaves the target behind, to be copied again."""
    position, before = source.position(), target.position()
    if position is None or not _is_ahead(position, before):
        return 0
    if before is not None:
        if not share.whole:
            return 0  # other workers have begun: each folds what it lacks
        target.remove()  # it may have sessions of users who are gone
        before = None
    count = len(position.events)
    own = share.partitions(count)
    start = FoldPosition(position.log_id, [0 if p in own else -1 for p in range(count)], 0)
    copied, batch, outliving = 0, dict[str, bytes](), dict[str, bytes]()
    for user, session, lasting in source.sessions_of(own, count):
        batch[user], outliving[user] = session, lasting
        copied += 1
        if len(batch) == _AT_ONCE:
            target.commit(before, start, batch, (), outliving)
            before, batch, outliving = start, {}, {}
    events = [offset if p in own else -1 for p, offset in enumerate(position.events)]
    after = FoldPosition(position.log_id, events, position.control)
    target.commit(before, after, batch, (), outliving)
    return copied


def _is_ahead(position: FoldPosition, other: FoldPosition | None) -> bool:
    if other is None:
        return True
    pairs = zip(position.events, other.events, strict=True)
    further = position.log_id == other.log_id and all(own >= before for own, before in pairs)
    return further and position.events != other.events
