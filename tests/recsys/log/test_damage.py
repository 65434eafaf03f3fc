"""Flipped bits in the SQLite log: each is harmless or named, and none changes a record silently."""

import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys.log import sqlite_mark
from recsys.log.protocol import Append, LogDamaged, LogLost, LogUnavailable, Topic
from recsys.log.record_crc import corrected, is_intact, record_crc
from recsys.log.sqlite_files import FORMAT, INSERT
from recsys.log.sqlite_log import SqliteLog
from recsys.log.sqlite_repair import check_topic
from tests.support.seeds import LONG, seeds
from tests.support.simulation.bit_flips import flip_bit, with_flips

TOPIC = "t"
NAMED = (LogUnavailable, LogLost, ValueError, KeyError)
FLIPS = 1_000 if LONG else 60


def contents(folder: Path) -> dict[str, Any]:
    """All that readers see of the topic."""
    log = SqliteLog(folder, patience_s=0.05)
    try:
        partitions = range(log.partitions(TOPIC))
        records = [log.read(TOPIC, p, log.begin(TOPIC, p)) for p in partitions]
        holds = [log.holds(TOPIC, p) for p in partitions]
        times = [log.appended_ms(TOPIC, 0, record.offset) for record in records[0]]
        return {"id": log.id, "records": records, "holds": holds, "times": times}
    finally:
        log.close()


def filled(folder: Path, size: int = 300, count: int = 60) -> SqliteLog:
    log, draw = SqliteLog(folder, clock=lambda: 1_790_000_000_000), random.Random(2)
    log.create(Topic(TOPIC, 2, retention_bytes=1 << 30))
    for n in range(count):
        log.append(TOPIC, [Append(n % 2, b"user-%d" % n, draw.randbytes(draw.randrange(size)))])
    log.trim(TOPIC, 0, 3)
    log.hold("fold", TOPIC, 0, 5)
    log.hold("snapshot", TOPIC, 1, 2)
    return log


def unseen(folder: Path, file: Path, count: int) -> list[int]:
    """Bits whose flip changed contents without an error."""
    whole = folder.with_name("whole")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(folder, whole)
    wrong, expected = [], contents(folder)
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    for bit in with_flips(file, count, seeds(file.name, 1, 1_000)[0]):
        try:
            if contents(folder) != expected:
                wrong.append(bit)
        except NAMED:
            pass
        for path in whole.iterdir():  # opening changed files
            if path != whole / file.name:
                shutil.copy(path, folder / path.name)
        for path in folder.iterdir():
            if not (whole / path.name).exists():
                path.unlink()
    return wrong


def killed_copy(tmp_path: Path, **how: int) -> Path:
    """The folder of a process that was killed: its newest commits are in the write-ahead file alone."""
    log = filled(tmp_path / "live", **how)
    shutil.copytree(tmp_path / "live", tmp_path / "log", ignore=shutil.ignore_patterns("*-shm"))
    log.close()
    return tmp_path / "log"


@pytest.mark.slow
def test_no_flip_in_a_topic_s_file_goes_unseen(tmp_path: Path) -> None:
    filled(tmp_path / "log").close()
    assert unseen(tmp_path / "log", tmp_path / "log" / "t.sqlite", FLIPS) == []


@pytest.mark.slow
def test_no_flip_in_the_write_ahead_file_goes_unseen(tmp_path: Path) -> None:
    folder = killed_copy(tmp_path, count=30)
    assert (folder / "t.sqlite-wal").stat().st_size > 500_000
    assert unseen(folder, folder / "t.sqlite-wal", FLIPS) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["catalogue.db", "t.mark"])
def test_no_flip_beside_the_topic_goes_unseen(tmp_path: Path, name: str) -> None:
    filled(tmp_path / "log").close()
    assert unseen(tmp_path / "log", tmp_path / "log" / name, FLIPS) == []


def test_a_flipped_bit_of_a_value_is_named_with_its_place(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.append(TOPIC, [Append(1, b"user", b"a value to be found")])
    log.close()
    file = tmp_path / "t.sqlite"
    flip_bit(file, 8 * file.read_bytes().index(b"a value to be found") + 3)
    with pytest.raises(LogDamaged, match=r"t/1: the record at offset 30 is damaged .* --repair"):
        SqliteLog(tmp_path).read(TOPIC, 1, 20)
    assert len(SqliteLog(tmp_path).read(TOPIC, 1, 20, limit=10)) == 10


@pytest.mark.parametrize("place", [(None, 0), (0, None)])
def test_a_record_without_a_place_is_refused(tmp_path: Path, place: tuple[Any, ...]) -> None:
    log = filled(tmp_path)
    with pytest.raises(sqlite3.IntegrityError, match="NOT NULL constraint failed: records"):
        log.connection(TOPIC).db.execute(INSERT, (*place, 0, b"", b"", None))


def test_a_missing_record_is_damage(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.connection(TOPIC).db.execute("DELETE FROM records WHERE partition = 1 AND offset IN (7, 29)")
    for start, missing in ((0, 7), (7, 7), (8, 29), (29, 29)):
        with pytest.raises(LogDamaged, match=f"offset {missing} "):
            log.read(TOPIC, 1, start)
        with pytest.raises(LogDamaged, match=f"offset {missing} "):
            log.appended_ms(TOPIC, 1, missing)
    assert len(log.read(TOPIC, 1, 8, limit=21)) == 21
    assert log.appended_ms(TOPIC, 1, 30) is None and log.appended_ms(TOPIC, 0, 2) is None


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE bounds SET end = end - 1 WHERE partition = 0",
        "UPDATE bounds SET begin = begin + 1 WHERE partition = 0",
        "UPDATE bounds SET bytes = bytes + 1024 WHERE partition = 0",
        "DELETE FROM bounds WHERE partition = 0",
        "UPDATE about SET retention_ms = 1",
        "UPDATE holds SET offset = offset + 1",
        "DELETE FROM holds WHERE name = 'fold'",
    ],
)
def test_bounds_settings_and_holds_are_checked_before_use(tmp_path: Path, change: str) -> None:
    filled(tmp_path).close()
    db = sqlite3.connect(tmp_path / "t.sqlite")
    db.execute(change)
    db.commit()
    db.close()
    with pytest.raises(LogDamaged, match="table of"):
        log = SqliteLog(tmp_path)
        log.retain(TOPIC, 1 << 60)
        log.append(TOPIC, [Append(0, b"", b"")])


@pytest.mark.parametrize(
    "use",
    [
        lambda log: log.trim(TOPIC, 0, 1),
        lambda log: log.retain(TOPIC, 1),
        lambda log: log.hold("other", TOPIC, 0, 5),
        lambda log: log.release("fold", TOPIC),
        lambda log: log.holds(TOPIC, 0),
    ],
    ids=["trim", "retain", "hold", "release", "holds"],
)
def test_each_use_of_damaged_settings_is_refused(tmp_path: Path, use: Callable[[SqliteLog], object]) -> None:
    filled(tmp_path).close()
    log = SqliteLog(tmp_path)
    use(log)
    log.connection(TOPIC).db.execute("UPDATE about SET retention_ms = 1")
    with pytest.raises(LogDamaged, match="table of"):
        use(log)
    log.close()


# --- the mark ---


def test_commits_that_sqlite_lost_are_damage(tmp_path: Path) -> None:
    """One flipped bit makes SQLite forget all later commits, without an error."""
    folder = killed_copy(tmp_path)
    wal = folder / "t.sqlite-wal"
    flip_bit(wal, 4 * wal.stat().st_size)
    with pytest.raises(LogDamaged, match=r"its newest \d+ commits are missing"):
        SqliteLog(folder).end(TOPIC, 0)
    (folder / "t.mark").unlink()
    assert SqliteLog(folder).end(TOPIC, 0) < 30  # the mark alone shows it


def test_a_kill_between_commit_and_mark_is_no_damage(tmp_path: Path) -> None:
    folder = killed_copy(tmp_path)
    log = SqliteLog(folder)
    mark = (folder / "t.mark").read_bytes()
    log.append(TOPIC, [Append(0, b"", b"")])
    log.close()
    (folder / "t.mark").write_bytes(mark)
    assert SqliteLog(folder).end(TOPIC, 0) == 31


def test_commits_lost_by_a_restart_of_the_machine_depend_on_durability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = killed_copy(tmp_path)
    (folder / "t.sqlite-wal").write_bytes(b"")
    monkeypatch.setattr(sqlite_mark, "_boot", lambda: b"another boot id!")
    with pytest.raises(LogDamaged, match="commits are missing"):
        SqliteLog(folder, durability="power").end(TOPIC, 0)
    log = SqliteLog(folder)
    ends = [log.end(TOPIC, p) for p in (0, 1)]
    assert "newest 64 commits are missing" in caplog.text
    # No offset is given twice: folds and archive may be further than the log.
    assert min(ends) == 30 and {r.value for p in (0, 1) for r in log.read(TOPIC, p, 0)} == {b""}
    assert log.append(TOPIC, [Append(0, b"", b"new")]) == [ends[0]]
    log.close()
    log = SqliteLog(folder, durability="power")  # the mark began again
    assert [record.value for record in log.read(TOPIC, 0, 29)][-2:] == [b"", b"new"]
    assert not check_topic(folder, TOPIC).damage


def test_writers_move_the_mark_forward_only(tmp_path: Path) -> None:
    first, second = sqlite_mark.Mark(tmp_path / "m"), sqlite_mark.Mark(tmp_path / "m")
    first.advance({0: 5, -1: 1})
    second.advance({0: 4, 1: 7, -1: 2})
    assert first.read() == sqlite_mark.Marked({0: 5, -1: 2, 1: 7}, True)
    flip_bit(tmp_path / "m", 3)
    assert first.read() is None
    first.reset({0: 1})
    assert second.read() == sqlite_mark.Marked({0: 1}, True)


# --- files of another version ---


@pytest.mark.parametrize("version", [FORMAT - 1, FORMAT + 1])
def test_a_file_of_another_format_is_refused(tmp_path: Path, version: int) -> None:
    filled(tmp_path).close()
    db = sqlite3.connect(tmp_path / "t.sqlite")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    expected = f"has format {version}, expected {FORMAT}: another version wrote it .* new state folder"
    with pytest.raises(LogUnavailable, match=expected):
        SqliteLog(tmp_path).end(TOPIC, 0)
    [damage] = check_topic(tmp_path, TOPIC).damage
    assert damage == f"t: its format is {version}, expected {FORMAT}"


# --- the checksum ---


def test_every_single_flipped_bit_is_located() -> None:
    record = (3, 17, 1_790_000_000_000, b"user-1", b"a value")
    crc = record_crc(*record)
    assert corrected(crc, *record) == record
    for bit in range(32):
        assert not is_intact(crc ^ 1 << bit, *record)
        assert corrected(crc ^ 1 << bit, *record) == record
    for place, of in enumerate(record):
        for bit in range(8 * len(of) if isinstance(of, bytes) else 62):
            if isinstance(of, bytes):
                part = bytearray(of)
                part[bit // 8] ^= 1 << bit % 8
                damaged = (*record[:place], bytes(part), *record[place + 1 :])
            else:
                damaged = (*record[:place], of ^ 1 << bit, *record[place + 1 :])
            assert not is_intact(crc, *damaged)
            assert corrected(crc, *damaged) == record


def test_more_than_a_bit_is_not_corrected() -> None:
    record = (0, 1, 2, b"k", b"a longer value than this")
    crc = record_crc(*record)
    for other in (b"a longer value thap this", b"A Longer value than this", b"a longer value"):
        assert corrected(crc, *record[:4], other) is None
    assert corrected(crc, *record[:4], "text") is None  # type: ignore[arg-type]


def test_a_hold_during_the_check_of_the_settings_is_no_damage(tmp_path: Path) -> None:
    reader, writer = SqliteLog(tmp_path), SqliteLog(tmp_path)
    reader.create(Topic(TOPIC))
    reader.append(TOPIC, [Append(0, b"", b"1")] * 3)
    offsets = iter((1, 2))

    def hold_between(statement: str) -> None:
        if "FROM holds" in statement and (offset := next(offsets, 0)):
            writer.hold("part", TOPIC, 0, offset)

    reader.connection(TOPIC).db.set_trace_callback(hold_between)
    assert reader.holds(TOPIC, 0) == {"part": 2}
