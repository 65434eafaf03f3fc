"""The log's catalogue says what the topics' files say; else it is named, and made again from these."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

from recsys.events.records import topics
from recsys.log.protocol import Topic
from recsys.log.sqlite_files import CATALOGUE
from recsys.log.sqlite_log import SqliteLog
from recsys.log.sqlite_repair import check_catalogue, rebuild_catalogue
from tests.support.seeds import LONG, seeds
from tests.support.simulation.bit_flips import flip_bit

TOPICS = topics(3)
FLIPS = 2_000 if LONG else 60


def made(folder: Path) -> str:
    with closing(SqliteLog(folder)) as log:
        for topic in TOPICS:
            log.create(topic)
    return log.id


def contents(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        query = "SELECT one, id FROM log UNION ALL SELECT name, partitions FROM topics"
        return db.execute(query).fetchall()


def test_a_flipped_bit_is_named_or_changes_nothing(tmp_path: Path) -> None:
    log_id, path = made(tmp_path), tmp_path / CATALOGUE
    draw = random.Random(seeds("catalogue", 1, 1_000)[0])
    intact, before = path.read_bytes(), contents(path)
    used = [at for at, byte in enumerate(intact) if byte]
    named = 0
    for number in range(FLIPS):
        at = draw.choice(used) if number % 2 else draw.randrange(len(intact))
        flip_bit(path, 8 * at + draw.randrange(8), intact)
        check = check_catalogue(tmp_path)
        assert check.log_id == log_id and len(check.partitions) == len(TOPICS)
        if check.damage or check.gone:
            named += 1
        else:
            assert contents(path) == before
    assert named > FLIPS // 3
    rebuild_catalogue(tmp_path, check)
    assert check_catalogue(tmp_path).damage == [] and set(contents(path)) == set(before)


def test_other_ids_partitions_and_files_are_named(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / CATALOGUE
    intact = path.read_bytes()
    for change, text in (
        ("UPDATE topics SET partitions = 7 WHERE name = 'events'", "7 partitions, and 3 by"),
        ("UPDATE topics SET name = 'evenus' WHERE name = 'events'", "topics without a file"),
        ("UPDATE log SET id = 'other'", "it names log 'other'"),
        ("DELETE FROM log", "not enough values"),
        ("CREATE TABLE t (x)", "its tables are others"),
    ):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(change)
        assert text in "; ".join(check_catalogue(tmp_path).damage)
        path.write_bytes(intact)
    assert check_catalogue(tmp_path).damage == []


def test_a_missing_catalogue_is_named_and_not_created(tmp_path: Path) -> None:
    log_id, path = made(tmp_path), tmp_path / CATALOGUE
    path.unlink()
    check = check_catalogue(tmp_path)
    assert check.damage and check.log_id == log_id and not path.exists()


def test_a_topic_that_a_crash_left_out_of_the_catalogue_is_no_damage(tmp_path: Path) -> None:
    made(tmp_path)
    with closing(sqlite3.connect(tmp_path / CATALOGUE)) as db, db:
        db.execute("DELETE FROM topics WHERE name = 'events'")
    check = check_catalogue(tmp_path)
    assert check.damage == check.gone == []
    with closing(SqliteLog(tmp_path)) as log:
        log.create(Topic("events", 3))


def test_a_topic_without_its_file_is_gone(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "events.sqlite").unlink()
    check = check_catalogue(tmp_path)
    assert check.gone == ["events"] and check.damage == []
