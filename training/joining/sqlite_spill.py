"""A joiner's spill as one SQLite file: see training/joining/spill.py for what it promises.

A row is never changed: it is stamped with the generation in which it was put and that in which it was taken.
A generation sees what was put by then and not taken by then; what no generation sees any more is deleted.

Of a user who was forgotten nothing stays in the file: when the rows are deleted it is written anew, as SQLite
leaves copies of them in free space and in the WAL. ``forgot`` has the generations in which that is due.
"""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from training.joining.spill import KEPT, NEVER, Row, SpillLost, check_generation, check_rows

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS held (
  id TEXT NOT NULL, due_ms INTEGER NOT NULL, offset INTEGER NOT NULL, user_id TEXT NOT NULL,
  value BLOB NOT NULL, put INTEGER NOT NULL, taken INTEGER NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS held_id ON held (id) WHERE taken = 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_due ON held (due_ms, id) WHERE taken = 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_offset ON held (offset) WHERE taken = 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_taken ON held (taken) WHERE taken < 9223372036854775807;
CREATE INDEX IF NOT EXISTS held_put ON held (put);
CREATE TABLE IF NOT EXISTS about (generation INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS forgot (generation INTEGER PRIMARY KEY);
"""
_COLUMNS: Final = "id, due_ms, offset, user_id, value"
_THERE: Final = f"taken = {NEVER}"


class SqliteSpill:
    """One SQLite file, made when the first row is put. One process at a time uses it.

    Between two marks everything is one transaction: after kill -9 the file stands at the newest mark.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._generation = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, rows: Sequence[Row]) -> None:
        if self._db is None:
            self._remove()
            self._open()
        generation = self._generation + 1
        self._do().executemany(
            "INSERT INTO held VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*row, generation, NEVER) for row in rows],
        )
        self._count += len(rows)

    def take(self, id_: str) -> Row | None:
        if not self._count:
            return None
        found = self._do().execute(
            f"UPDATE held SET taken = ? WHERE id = ? AND {_THERE} RETURNING {_COLUMNS}",
            (self._generation + 1, id_),
        ).fetchall()  # fmt: skip
        self._count -= len(found)
        return Row(*found[0]) if found else None

    def has(self, id_: str) -> bool:
        query = f"SELECT 1 FROM held WHERE id = ? AND {_THERE}"
        return bool(self._count) and self._do().execute(query, (id_,)).fetchone() is not None

    def next_ms(self) -> int | None:
        return self._least("due_ms")

    def take_due(self, now_ms: int, limit: int) -> list[Row]:
        if not self._count:
            return []
        found = self._do().execute(
            f"SELECT {_COLUMNS} FROM held WHERE {_THERE} AND due_ms <= ? "
            "ORDER BY due_ms, id LIMIT ?",
            (now_ms, limit),
        ).fetchall()  # fmt: skip
        self._do().executemany(
            f"UPDATE held SET taken = ? WHERE id = ? AND {_THERE}",
            [(self._generation + 1, row[0]) for row in found],
        )
        self._count -= len(found)
        return [Row(*row) for row in found]

    def oldest(self) -> int | None:
        return self._least("offset")

    def forget(self, user_id: str) -> None:
        if self._db is None:
            return
        generation = self._generation + 1
        taken = self._do().execute(
            f"UPDATE held SET taken = ? WHERE user_id = ? AND {_THERE}", (generation, user_id)
        )
        self._count -= taken.rowcount
        # Also where none was there: some may have been taken before.
        self._do().execute("INSERT OR IGNORE INTO forgot VALUES (?)", (generation + KEPT,))

    def mark(self) -> int:
        if self._db is None:
            return 0
        self._generation += 1
        db = self._do()
        # The second condition is the index's own: SQLite takes it by that.
        db.execute(
            f"DELETE FROM held WHERE taken <= ? AND taken < {NEVER}", (self._generation - KEPT,)
        )
        db.execute("UPDATE about SET generation = ?", (self._generation,))
        db.execute("COMMIT")
        self._scrub(db)
        return self._generation

    def back(self, generation: int, rows: int) -> None:
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
        self._do().execute(
            "UPDATE held SET taken = ? WHERE taken > ? AND taken < ?", (NEVER, generation, NEVER)
        )
        (self._count,) = db.execute(f"SELECT count(*) FROM held WHERE {_THERE}").fetchone()
        check_rows(rows, self._count)

    def close(self) -> None:
        if self._db is not None:
            self._db.close()  # what wasn't marked is rolled back
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
        """Writes the file anew where that is due; the next mark does it where it can't be done now."""
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
        query = f"SELECT min({column}) FROM held WHERE {_THERE}"
        return int(self._do().execute(query).fetchone()[0])

    def _remove(self) -> None:
        for ending in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + ending).unlink(missing_ok=True)
