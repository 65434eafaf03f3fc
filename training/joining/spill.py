"""Stores joiner state beyond its memory cap on disk: rows that are put, and taken back by id or when due.

``mark`` ends a generation, whose number goes into the joiner's snapshot; ``rewind`` returns to the rows of a
generation: the newest or one of the two before it.
"""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

# Generations before the newest that ``rewind`` supports. A part has two snapshots, and a kill between mark()
# and its save leaves the newest generation without a snapshot.
KEPT: Final = 2
NEVER: Final = (1 << 63) - 1

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS held (
  id TEXT NOT NULL, due_ms INTEGER NOT NULL, offset INTEGER NOT NULL, user_id TEXT NOT NULL,
  value BLOB NOT NULL, put INTEGER NOT NULL, taken INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS held_id ON held (id) WHERE taken = 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_due ON held (due_ms, id) WHERE taken = 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_offset ON held (offset) WHERE taken = 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_user ON held (user_id) WHERE taken = 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_taken ON held (taken) WHERE taken < 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_put ON held (put);
CREATE TABLE IF NOT EXISTS about (generation INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS forgot (generation INTEGER PRIMARY KEY);
"""
_COLUMNS: Final = "id, due_ms, offset, user_id, value"
_PRESENT: Final = f"taken = {NEVER}"


class Row(NamedTuple):
    """A spilled impression: its offset and user, and the joiner's opaque ``value``."""

    id: str
    due_ms: int
    offset: int
    user_id: str
    value: bytes


class SpillLost(ValueError):
    """The rows of a snapshot are missing."""


class Spill:
    """Rows with unique ids in one SQLite file, created with the first row. For one process at a time.

    Everything between two marks is one transaction: after kill -9 the file is at the newest mark. A
    generation consists of rows put by then and not taken by then; rows that no supported generation contains
    are deleted. For a forgotten user the file is then vacuumed, as SQLite leaves copies in free space and in
    the WAL; ``forgot`` lists the generations in which that is due.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._generation = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, rows: Sequence[Row]) -> None:
        """Adds rows, whose ids must be absent."""
        if self._db is None:
            self._remove()
            self._open()
        generation = self._generation + 1
        values = [(*row, generation, NEVER) for row in rows]
        self._do().executemany("INSERT INTO held VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        self._count += len(rows)

    def take(self, id_: str) -> Row | None:
        """Removes and returns a row; None if absent."""
        if not self._count:
            return None
        rows = self._do().execute(
            f"UPDATE held SET taken = ? WHERE id = ? AND {_PRESENT} RETURNING {_COLUMNS}",
            (self._generation + 1, id_),
        ).fetchall()  # fmt: skip
        self._count -= len(rows)
        return Row(*rows[0]) if rows else None

    def has(self, id_: str) -> bool:
        query = f"SELECT 1 FROM held WHERE id = ? AND {_PRESENT}"
        return bool(self._count) and self._do().execute(query, (id_,)).fetchone() is not None

    def next_ms(self) -> int | None:
        """The lowest ``due_ms``."""
        return self._least("due_ms")

    def take_due(self, now_ms: int, limit: int) -> list[Row]:
        """Removes and returns the first ``limit`` rows due at ``now_ms``, by (due_ms, id)."""
        if not self._count:
            return []
        rows = self._do().execute(
            f"SELECT {_COLUMNS} FROM held WHERE {_PRESENT} AND due_ms <= ? "
            "ORDER BY due_ms, id LIMIT ?",
            (now_ms, limit),
        ).fetchall()  # fmt: skip
        self._do().executemany(
            f"UPDATE held SET taken = ? WHERE id = ? AND {_PRESENT}",
            [(self._generation + 1, row[0]) for row in rows],
        )
        self._count -= len(rows)
        return [Row(*row) for row in rows]

    def oldest(self) -> int | None:
        """The lowest offset."""
        return self._least("offset")

    def of_user(self, user_id: str) -> list[str]:
        """Ids of a user's rows."""
        if not self._count:
            return []
        query = f"SELECT id FROM held WHERE user_id = ? AND {_PRESENT} ORDER BY id"
        return [id_ for (id_,) in self._do().execute(query, (user_id,))]

    def forget(self, user_id: str) -> None:
        """Removes a user's rows."""
        if self._db is None:
            return
        generation = self._generation + 1
        query = f"UPDATE held SET taken = ? WHERE user_id = ? AND {_PRESENT}"
        taken = self._do().execute(query, (generation, user_id))
        self._count -= taken.rowcount
        # Even without such rows: some may have been taken before.
        self._do().execute("INSERT OR IGNORE INTO forgot VALUES (?)", (generation + KEPT,))

    def mark(self) -> int:
        """Ends a generation, durably, and returns its number. 0: nothing was ever put."""
        if self._db is None:
            return 0
        self._generation += 1
        db = self._do()
        # The second condition is that of the index, so that SQLite uses it.
        db.execute(f"DELETE FROM held WHERE taken <= ? AND taken < {NEVER}", (self._generation - KEPT,))
        db.execute("UPDATE about SET generation = ?", (self._generation,))
        db.execute("COMMIT")
        self._scrub(db)
        return self._generation

    def rewind(self, generation: int, rows: int) -> None:
        """Returns to a generation of so many ``rows``; 0 is empty. Raises SpillLost if it is missing."""
        self.close()
        if generation == 0:
            self._remove()
            self._generation = self._count = 0
            check_rows(rows, 0)
            return
        if not self._path.exists():
            raise SpillLost(f"{self._path} is gone, and the snapshot has {rows} rows in it")
        db = self._open()
        (newest,) = db.execute("SELECT generation FROM about").fetchone()
        check_generation(generation, newest)
        self._generation = generation
        self._do().execute("DELETE FROM held WHERE put > ?", (generation,))
        query = "UPDATE held SET taken = ? WHERE taken > ? AND taken < ?"
        self._do().execute(query, (NEVER, generation, NEVER))
        (self._count,) = db.execute(f"SELECT count(*) FROM held WHERE {_PRESENT}").fetchone()
        check_rows(rows, self._count)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()  # rolls back everything since the last mark
            self._db = None

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._db = db = sqlite3.connect(self._path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")  # a snapshot that names a mark must not outlive it
        db.execute("PRAGMA secure_delete = ON")
        db.executescript(_TABLE)
        db.execute("INSERT INTO about SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM about)")
        return db

    def _do(self) -> sqlite3.Connection:
        assert self._db is not None
        if not self._db.in_transaction:
            self._db.execute("BEGIN")
        return self._db

    def _scrub(self, db: sqlite3.Connection) -> None:
        """Vacuums the file if that is due; the next mark tries again if it fails."""
        due = "FROM forgot WHERE generation <= ?"
        if db.execute(f"SELECT 1 {due}", (self._generation,)).fetchone() is None:
            return
        with contextlib.suppress(sqlite3.OperationalError):  # a full disk
            db.execute("VACUUM")
            if not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                db.execute(f"DELETE {due}", (self._generation,))

    def _least(self, column: str) -> int | None:
        if not self._count:
            return None
        query = f"SELECT min({column}) FROM held WHERE {_PRESENT}"
        return int(self._do().execute(query).fetchone()[0])

    def _remove(self) -> None:
        for ending in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)


def check_generation(generation: int, newest: int) -> None:
    if not newest - KEPT <= generation <= newest:
        raise SpillLost(
            f"generation is {generation}, expected {max(0, newest - KEPT)} to {newest}, which are stored"
        )


def check_rows(expected: int, count: int) -> None:
    if count != expected:
        raise SpillLost(f"{count} rows are stored, the snapshot has {expected}")
