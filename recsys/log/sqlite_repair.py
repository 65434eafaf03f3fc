"""Checks the SQLite files of a log, a topic's record by record, and rebuilds them from what is readable."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from recsys.log.protocol import LogDamaged, Topic
from recsys.log.record_crc import corrected, is_intact, record_crc
from recsys.log.sqlite_files import (
    CATALOGUE,
    COMMITS,
    FORMAT,
    INSERT,
    Connection,
    fill_catalogue,
    make_file,
    open_file,
)
from recsys.log.sqlite_mark import Mark, Marked

_CHUNK: Final = 500
_MOST_PARTITIONS: Final = 10_000  # more is damage of the number
_Row = tuple[Any, ...]  # time, key, value, checksum
Pace = Callable[[int], None]
_COLUMNS: Final = "partition, offset, time_ms, key, value, crc"
Archived = Callable[[int, list[int]], Mapping[int, tuple[bytes, bytes]]]
"""Keys and values of the offsets of a partition, as far as they are known elsewhere."""


@dataclass
class TopicCheck:
    """Result of a check. ``damage``: descriptions."""

    topic: str
    records: int = 0
    damage: list[str] = field(default_factory=list)


@dataclass
class Rebuilt:
    """Result of a rebuild, in records. ``corrected``: by their checksum; ``restored``: from elsewhere;
    ``lost``: replaced by empty, unreadable records, which folds skip and count."""

    intact: int = 0
    corrected: int = 0
    restored: int = 0
    lost: list[str] = field(default_factory=list)


@dataclass
class CatalogueCheck:
    """Result of a check. ``log_id`` and ``partitions`` by topic are those that the topics' own files name;
    without any intact one, the catalogue's id. ``gone``: topics whose file is missing."""

    log_id: str
    partitions: dict[str, int]
    damage: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def check_catalogue(folder: Path) -> CatalogueCheck:
    """Compares a log's catalogue with the topics' files, which name the log and their partitions, too."""
    files = {path.stem: path for path in sorted(folder.glob("[!.]*.sqlite"))}
    named = {topic: about for topic, path in files.items() if (about := _named_by(path))}
    check = CatalogueCheck("", {topic: count for topic, (_, count) in named.items()})
    ids = {log_id for log_id, _ in named.values()}
    try:
        log_id, topics = _read_catalogue(folder / CATALOGUE, check.damage)
    except (sqlite3.DatabaseError, TypeError, ValueError) as error:
        check.damage.append(str(error))
        log_id, topics = "", {}
    check.log_id = ids.pop() if len(ids) == 1 else log_id
    if log_id != check.log_id and not check.damage:
        check.damage.append(f"it names log {log_id!r}, the topics' files name {check.log_id!r}")
    for topic, count in topics.items():
        own = check.partitions.get(topic, count)
        if own != count:
            check.damage.append(f"topic {topic} has {count!r} partitions, and {own} by its file")
    check.gone = [topic for topic in topics if not (folder / f"{topic}.sqlite").exists()]
    if check.gone and files.keys() - topics.keys():
        check.damage.append(f"it names topics without a file: {check.gone}")
        check.gone = []
    return check


def rebuild_catalogue(folder: Path, check: CatalogueCheck) -> None:
    """Replaces a damaged catalogue; no process may use it. A topic whose file is damaged isn't in it until
    the next start."""
    path, aside = folder / CATALOGUE, folder / f".{CATALOGUE}.rebuilt"
    aside.unlink(missing_ok=True)
    with closing(open_file(aside)) as db:
        db.execute("BEGIN")
        fill_catalogue(db, check.log_id)
        db.executemany("INSERT INTO topics VALUES (?, ?)", check.partitions.items())
        db.execute("COMMIT")
    Path(f"{path}-journal").unlink(missing_ok=True)  # it doesn't belong to the new file
    os.replace(aside, path)
    _sync(folder)


def _named_by(path: Path) -> tuple[str, int] | None:
    """Id of the log and number of partitions by a topic's file; None if it is damaged."""
    try:
        connection = Connection(path.stem, open_file(path))
        connection.check_settings()
        log_id, count = connection.db.execute("SELECT log_id, partitions FROM about").fetchone()
        return log_id, count
    except (LogDamaged, sqlite3.DatabaseError, TypeError):
        return None


def _read_catalogue(path: Path, damage: list[str]) -> tuple[str, dict[str, int]]:
    """The log's id and the topics' partitions; adds to ``damage`` what SQLite or a new file shows."""
    tables = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"
    with closing(open_file(Path(":memory:"))) as new:
        fill_catalogue(new, "")
        expected = new.execute(tables).fetchall()
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=rw", uri=True)) as db:
        lines = [line for (line,) in db.execute("PRAGMA integrity_check(10)")]
        damage += [line for line in lines if line != "ok"]
        if db.execute(tables).fetchall() != expected:
            damage.append("its tables are others")
        ((one, log_id),) = db.execute("SELECT one, id FROM log").fetchall()
        rows = db.execute("SELECT name, partitions FROM topics").fetchall()
        if one != 1:
            damage.append(f"the log's row has number {one!r}")
        return log_id, {str(name): count for name, count in rows}


def check_topic(folder: Path, topic: str, pace: Pace = lambda _: None) -> TopicCheck:
    """Reads all records of a topic, in use or not. ``pace`` gets the bytes read since its last call."""
    check = TopicCheck(topic)
    connection = Connection(topic, open_file(folder / f"{topic}.sqlite"))
    path = folder / f"{topic}.mark"
    marked = Mark(path).read()  # first: commits go on meanwhile
    if marked is None and path.stat().st_size:
        check.damage.append(f"{topic}: the mark is unreadable; the next start writes a new one")
    try:
        for (line,) in connection.db.execute("PRAGMA quick_check(10)"):
            if line != "ok":
                check.damage.append(f"{topic}: {line}")
        (version,) = connection.db.execute("PRAGMA user_version").fetchone()
        if version != FORMAT:
            check.damage.append(f"{topic}: its format is {version}, expected {FORMAT}")
        _check_tables(connection, marked, check)
        (partitions,) = connection.db.execute("SELECT partitions FROM about").fetchone()
        for partition in range(min(partitions, _MOST_PARTITIONS)):
            _check_partition(connection, partition, check, pace)
    except (sqlite3.DatabaseError, TypeError) as error:  # a row is missing or of another type
        check.damage.append(f"{topic}: {error}")
    return check


def _check_tables(connection: Connection, marked: Marked | None, check: TopicCheck) -> None:
    try:
        connection.check_settings()
    except LogDamaged as error:
        check.damage.append(str(error))
    try:
        missing = marked.ends.get(COMMITS, 0) - connection.bounds(COMMITS)[1] if marked else 0
    except LogDamaged as error:
        check.damage.append(str(error))
        return
    if missing > 0:
        check.damage.append(f"{check.topic}: the newest {missing} commits are missing")


def _check_partition(connection: Connection, partition: int, check: TopicCheck, pace: Pace) -> None:
    place = f"{check.topic}/{partition}"
    try:
        at, end, _ = connection.bounds(partition)
        while at < end:
            until = min(at + _CHUNK, end)
            rows = _rows(connection.db, partition, at, until)
            begin = connection.bounds(partition)[0]  # records before it were dropped meanwhile
            intact = {row[1]: row for row in rows if is_intact(row[5], *row[:5])}
            check.damage += [
                f"{place}: the record at offset {offset} is damaged or missing"
                for offset in range(max(at, begin), until)
                if offset not in intact
            ]
            check.records += len(rows)
            pace(sum(len(row[3]) + len(row[4]) for row in intact.values()))
            at = max(until, begin)
    except (LogDamaged, sqlite3.DatabaseError) as error:
        check.damage.append(f"{place}: {error}")


def _rows(db: sqlite3.Connection, partition: int, start: int, stop: int) -> list[tuple[Any, ...]]:
    """Rows with offsets in [start, stop), without those that SQLite can't read."""
    where = "WHERE partition = ? AND offset >= ? AND offset < ? ORDER BY offset"
    try:
        query = f"SELECT {_COLUMNS} FROM records {where}"
        return db.execute(query, (partition, start, stop)).fetchall()
    except sqlite3.DatabaseError:
        middle = (start + stop) // 2
        if middle == start:
            return []
        return _rows(db, partition, start, middle) + _rows(db, partition, middle, stop)


def rebuild_topic(folder: Path, log_id: str, topic: Topic, archived: Archived = lambda *_: {}) -> Rebuilt:
    """Rebuilds a topic's file; no process may use it. The damaged files stay beside it as ``*.damaged``.

    A record comes from the old file, if need be with one bit corrected, or from ``archived``. Offsets of
    lost records stay, with an empty value.
    """
    path, mark = folder / f"{topic.name}.sqlite", Mark(folder / f"{topic.name}.mark")
    marked = mark.read() or Marked({}, True)
    aside = folder / f".{topic.name}.rebuilt"
    for leftover in folder.glob(f"{aside.name}*"):
        leftover.unlink()
    # Before it is opened, which may shorten the write-ahead file.
    for file in (path, Path(f"{path}-wal")):
        if file.exists():
            shutil.copyfile(file, f"{file}.damaged")
    make_file(aside, log_id, topic)
    old, new = Connection(topic.name, open_file(path)), Connection(topic.name, open_file(aside))
    rebuilder = _Rebuilder(old, new, archived)
    with closing(old.db), closing(new.db):
        new.db.execute("PRAGMA journal_mode = OFF")  # synced at the end
        new.db.execute("BEGIN")
        for partition in range(topic.partitions):
            rebuilder.fill(partition, marked.ends.get(partition, 0))
        commits = max(rebuilder.old_bounds(COMMITS)[1], marked.ends.get(COMMITS, 0)) + 1
        new.set_bounds(COMMITS, 0, commits, 0)
        with suppress(sqlite3.DatabaseError):
            rebuilder.copy_holds()
        new.seal_settings()
        new.db.execute("COMMIT")
        new.db.execute("PRAGMA journal_mode = WAL")
    _sync(aside)
    _sync(folder)
    for suffix in ("-wal", "-shm"):  # first: they don't belong to the new file
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    os.replace(aside, path)
    mark.reset(new.ends)
    return rebuilder.result


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


class _Rebuilder:
    """Copies what is readable of a topic's file into a new one."""

    def __init__(self, old: Connection, new: Connection, archived: Archived) -> None:
        self._old, self._new, self._archived = old, new, archived
        self.result = Rebuilt()

    def fill(self, partition: int, least_end: int) -> None:
        """Copies a partition; it ends at ``least_end`` or later."""
        begin, end, _ = self.old_bounds(partition)
        end, size, time_ms = max(end, least_end), 0, 0
        chunks = [range(at, min(at + _CHUNK, end)) for at in range(begin, end, _CHUNK)]
        misplaced = self._misplaced(partition, chunks)
        for offsets in chunks:
            rows = self._intact(partition, offsets)
            self.result.intact += len(rows)
            rows |= {offset: misplaced[offset] for offset in offsets if offset in misplaced}
            missing = [offset for offset in offsets if offset not in rows]
            elsewhere = self._archived(partition, missing) if missing else {}
            self.result.restored += len(elsewhere)
            for offset in offsets:
                if offset in rows:
                    time_ms, key, value, crc = rows[offset]
                else:
                    key, value = elsewhere.get(offset, (b"", b""))
                    crc = record_crc(partition, offset, time_ms, key, value)
                    if offset not in elsewhere:
                        self.result.lost.append(f"{self._old.topic}/{partition}: offset {offset}")
                self._new.db.execute(INSERT, (partition, offset, time_ms, key, value, crc))
                size += len(key) + len(value)
        self._new.set_bounds(partition, begin, end, size)

    def old_bounds(self, partition: int) -> tuple[int, int, int]:
        """Bounds of the old file; of the readable records where the table is damaged."""
        with suppress(LogDamaged, sqlite3.DatabaseError):
            return self._old.bounds(partition)
        offsets = [row[1] for row in self._all_rows() if row[0] == partition]
        return min(offsets, default=0), max(offsets, default=-1) + 1, 0

    def copy_holds(self) -> None:
        """Copies the holds. Where their table is damaged, each holds its whole partition until its owner
        holds another offset."""
        self._old.db.text_factory = str
        holds = self._old.db.execute("SELECT name, partition, offset FROM holds").fetchall()
        try:
            self._old.check_settings()
        except LogDamaged:
            holds = [(name, p, self.old_bounds(p)[0]) for name, p, _ in holds]
        self._new.db.executemany("INSERT OR REPLACE INTO holds VALUES (?, ?, ?)", holds)

    def _misplaced(self, partition: int, chunks: Sequence[range]) -> dict[int, _Row]:
        """Rows by offset that are missing there: with a bit corrected, at another place, or on a page whose
        order is wrong. Found in one pass over the file."""
        missing = set[int]()
        for offsets in chunks:
            missing |= set(offsets) - self._intact(partition, offsets).keys()
        rows = dict[int, _Row]()
        for row in self._all_rows() if missing else ():
            if row[0] == partition and row[1] in missing:
                rows.setdefault(row[1], row[2:])
        self.result.corrected += len(rows)
        return rows

    def _intact(self, partition: int, offsets: range) -> dict[int, _Row]:
        """Intact rows by offset."""
        self._old.db.text_factory = bytes  # a flip may turn a blob into text
        rows = _rows(self._old.db, partition, offsets.start, offsets.stop)
        return {row[1]: row[2:] for row in rows if is_intact(row[5], *row[:5])}

    def _all_rows(self) -> Iterator[tuple[Any, ...]]:
        """All readable rows, in the file's order, each with the bit corrected that its checksum shows."""
        self._old.db.text_factory = bytes
        with suppress(sqlite3.DatabaseError):  # until the first row that SQLite can't read
            for row in self._old.db.execute(f"SELECT {_COLUMNS} FROM records"):
                if is_intact(row[5], *row[:5]):
                    yield row
                elif isinstance(row[5], int) and (right := corrected(row[5], *row[:5])) is not None:
                    yield (*right, record_crc(*right))
