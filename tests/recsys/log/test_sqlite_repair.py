"""Checking and rebuilding a topic's file: what is readable stays, bit by bit, and nothing else moves."""

import random
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from recsys.log import sqlite_repair
from recsys.log.protocol import Append, LogDamaged, Record, Topic
from recsys.log.sqlite_log import SqliteLog
from recsys.log.sqlite_repair import Rebuilt, check_topic, rebuild_topic
from tests.support.simulation.bit_flips import flip_bit, with_flips

TOPIC = Topic("t", 2, retention_bytes=1 << 30)


def filled(folder: Path, count: int = 40) -> str:
    """A log without another process; returns its id."""
    log, draw = SqliteLog(folder, clock=lambda: 1_790_000_000_000), random.Random(2)
    log.create(TOPIC)
    for n in range(count):
        log.append("t", [Append(n % 2, b"user-%d" % n, draw.randbytes(draw.randrange(20, 300)))])
    log.trim("t", 0, 3)
    log.hold("fold", "t", 0, 5)
    log.close()
    return log.id


def contents(folder: Path) -> tuple[object, ...]:
    log = SqliteLog(folder)
    try:
        return (
            [log.read("t", p, log.begin("t", p)) for p in (0, 1)],
            log.holds("t", 0),
            log.appended_ms("t", 0, 5),
        )
    finally:
        log.close()


def archive_of(folder: Path) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    log = SqliteLog(folder)
    places = [(p, r) for p in (0, 1) for r in log.read("t", p, log.begin("t", p))]
    log.close()
    return {(p, record.offset): (record.key, record.value) for p, record in places}


def rebuild(folder: Path, archive: Mapping[tuple[int, int], tuple[bytes, bytes]] = {}) -> Rebuilt:
    def archived(partition: int, offsets: list[int]) -> dict[int, tuple[bytes, bytes]]:
        return {o: archive[partition, o] for o in offsets if (partition, o) in archive}

    log = SqliteLog(folder)
    log.close()
    return rebuild_topic(folder, log.id, TOPIC, archived)


def position_of(file: Path, text: bytes) -> int:
    return 8 * file.read_bytes().index(text)


def test_an_intact_topic_has_no_damage_and_is_rebuilt_equal(tmp_path: Path) -> None:
    filled(tmp_path)
    before = contents(tmp_path)
    check = check_topic(tmp_path, "t")
    assert (check.records, check.damage) == (37, [])
    assert rebuild(tmp_path) == Rebuilt(intact=37)
    assert contents(tmp_path) == before and check_topic(tmp_path, "t").damage == []
    log = SqliteLog(tmp_path)
    assert log.append("t", [Append(1, b"", b"x")]) == [20]
    assert (tmp_path / "t.sqlite.damaged").exists()


def test_a_missing_mark_is_no_damage_and_an_unreadable_one_is(tmp_path: Path) -> None:
    filled(tmp_path)
    flip_bit(tmp_path / "t.mark", 5)
    assert "mark is unreadable" in check_topic(tmp_path, "t").damage[0]
    (tmp_path / "t.mark").unlink()  # as in a restored backup
    assert check_topic(tmp_path, "t").damage == []
    SqliteLog(tmp_path).end("t", 0)
    assert (tmp_path / "t.mark").stat().st_size > 0


def test_a_flipped_bit_is_corrected_without_another_copy(tmp_path: Path) -> None:
    filled(tmp_path)
    before = contents(tmp_path)
    file = tmp_path / "t.sqlite"
    flip_bit(file, position_of(file, b"user-17") + 2)
    assert check_topic(tmp_path, "t").damage == ["t/1: the record at offset 8 is damaged or missing"]
    assert rebuild(tmp_path) == Rebuilt(intact=36, corrected=1)
    assert contents(tmp_path) == before and check_topic(tmp_path, "t").damage == []


def test_a_record_with_more_damage_comes_from_elsewhere_or_becomes_empty(tmp_path: Path) -> None:
    filled(tmp_path)
    before, archive = contents(tmp_path), archive_of(tmp_path)
    file = tmp_path / "t.sqlite"
    bit = position_of(file, b"user-17")
    for place in (0, 9, 18):
        flip_bit(file, bit + place)
    shutil.copytree(tmp_path, tmp_path / "second")
    assert rebuild(tmp_path, archive) == Rebuilt(intact=36, restored=1)
    records, *others = contents(tmp_path)
    assert [records, *others] == list(before)
    assert rebuild(tmp_path / "second") == Rebuilt(intact=36, lost=["t/1: offset 8"])
    log = SqliteLog(tmp_path / "second")
    assert log.read("t", 1, 8, 1) == [Record(8, b"", b"")]


def test_commits_that_were_lost_come_from_elsewhere_and_offsets_are_not_given_twice(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "live")
    log.create(TOPIC)
    for n in range(30):
        log.append("t", [Append(0, b"key", b"%d" % n * 50)])
    archive = archive_of(tmp_path / "live")
    shutil.copytree(tmp_path / "live", tmp_path / "log", ignore=shutil.ignore_patterns("*-shm"))
    log.close()
    folder = tmp_path / "log"
    wal = folder / "t.sqlite-wal"
    flip_bit(wal, 4 * wal.stat().st_size)
    del archive[0, 29]
    with pytest.raises(LogDamaged, match="commits are missing"):
        SqliteLog(folder).end("t", 0)
    assert "commits are missing" in check_topic(folder, "t").damage[0]
    result = rebuild_topic(folder, log.id, TOPIC, lambda p, os: {o: archive[p, o] for o in os if o < 29})
    assert 5 < result.intact < 25 and result.intact + result.restored == 29
    assert result.lost == ["t/0: offset 29"]
    log = SqliteLog(folder)
    assert [r.value for r in log.read("t", 0, 0)] == [b"%d" % n * 50 for n in range(29)] + [b""]
    assert log.append("t", [Append(0, b"", b"x")]) == [30]


def test_damaged_holds_hold_their_whole_partition(tmp_path: Path) -> None:
    filled(tmp_path)
    db = sqlite3.connect(tmp_path / "t.sqlite")
    db.execute("UPDATE holds SET offset = 13")
    db.commit()
    db.close()
    assert "settings or of holds" in check_topic(tmp_path, "t").damage[0]
    rebuild(tmp_path)
    assert SqliteLog(tmp_path).holds("t", 0) == {"fold": 3}


def test_a_file_that_is_no_database_is_restored_from_elsewhere(tmp_path: Path) -> None:
    filled(tmp_path)
    (before, *_), archive = contents(tmp_path), archive_of(tmp_path)
    (tmp_path / "t.sqlite").write_bytes(b"x" * 20_000)
    assert check_topic(tmp_path, "t").damage == ["t: file is not a database"]
    result = rebuild(tmp_path, archive)
    assert (result.intact, result.restored) == (0, 37)
    assert [text.rpartition(" ")[2] for text in result.lost] == ["0", "1", "2"]  # trimmed long ago
    log = SqliteLog(tmp_path)
    assert [log.read("t", 0, 3), log.read("t", 1, 0)] == before


@pytest.mark.slow
def test_any_flip_is_repaired_from_the_archive(tmp_path: Path) -> None:
    filled(tmp_path / "log", 300)
    (before, *_), archive = contents(tmp_path / "log"), archive_of(tmp_path / "log")
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "log", whole)
    damaged = 0
    for bit in with_flips(whole / "t.sqlite", 150, seed=6):
        folder = tmp_path / "log"
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        if not check_topic(folder, "t").damage:
            continue
        damaged += 1
        result = rebuild(folder, archive)
        log = SqliteLog(folder)
        start = 0 if log.begin("t", 0) == 0 else 3
        log.close()
        assert result.lost == [f"t/0: offset {offset}" for offset in range(start, 3)], bit
        after = contents(folder)[0]
        assert isinstance(after, list)
        assert [after[0][-147:], after[1]] == before, bit
        assert check_topic(folder, "t").damage == [], bit
    assert damaged > 40


def test_the_file_is_searched_once_a_partition_however_many_places_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / "t.sqlite") as db:
        db.execute("DELETE FROM records WHERE offset % 5 = 4")
    db.close()
    searches = 0
    search = sqlite_repair._Rebuilder._all_rows

    def counted(rebuilder: sqlite_repair._Rebuilder) -> Iterator[tuple[Any, ...]]:
        nonlocal searches
        searches += 1
        return search(rebuilder)

    monkeypatch.setattr(sqlite_repair._Rebuilder, "_all_rows", counted)
    monkeypatch.setattr(sqlite_repair, "_CHUNK", 3)
    assert len(rebuild(tmp_path).lost) == 8
    assert searches == 2
