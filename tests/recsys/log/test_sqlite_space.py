"""The SQLite log gives the disk back what it has dropped."""

import os
import sqlite3

import pytest

from recsys.clock import Clock as EventClock
from recsys.clock import Pace
from recsys.log.protocol import Append, LogUnavailable, Topic
from recsys.log.sqlite_files import FREE_SHARE, PAGE_BYTES, VACUUM_PAGES
from recsys.log.sqlite_log import SqliteLog
from tests.support.clock import Clock

ROOM = 2 * VACUUM_PAGES * PAGE_BYTES  # that a file keeps, with a slice's rest
RECORD = 40_000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(tmp_path, clock):
    log = SqliteLog(tmp_path, clock=clock)
    yield log
    log.close()


def fill(log, count, topic="t"):
    for _ in range(count // 20):
        log.append(topic, [Append(0, b"k", os.urandom(RECORD)) for _ in range(20)])


def size_of(log, topic="t"):
    log.truncate_wal(topic)
    return log.path(topic).stat().st_size


def query(log, text, topic="t"):
    with sqlite3.connect(log.path(topic)) as db:
        return db.execute(text).fetchone()[0]


def test_a_trimmed_file_shrinks_and_keeps_the_other_records(log):
    log.create(Topic("t"))
    fill(log, 1_000)
    before = log.read("t", 0, 990)
    assert size_of(log) > 40_000_000
    log.trim("t", 0, 990)
    assert size_of(log) < ROOM
    assert log.read("t", 0, 990) == before and len(before) == 10
    assert query(log, "PRAGMA integrity_check") == "ok"


def test_retention_shrinks_a_file_slice_by_slice_once_nothing_holds_it(log, clock):
    log.create(Topic("t", retention_bytes=2_000_000))
    log.hold("joiner", "t", 0, 0)
    fill(log, 1_000)
    held = size_of(log)
    assert held > 40_000_000
    log.hold("joiner", "t", 0, 1_000)
    for _ in range(60):
        clock.now_ms += 1_001
        log.append("t", [Append(0, b"k", b"x")])
    assert size_of(log) < 2_000_000 / (1 - FREE_SHARE) + ROOM
    assert log.end("t", 0) == 1_060 and log.begin("t", 0) > 900


def test_a_full_topic_reuses_its_pages(log, clock):
    log.create(Topic("t", retention_bytes=20_000_000))
    sizes = []
    for _ in range(30):
        fill(log, 100)
        clock.now_ms += 1_001
        sizes.append(size_of(log))
    assert max(sizes[10:]) < 20_000_000 / (1 - FREE_SHARE) + ROOM


def test_a_topic_of_a_running_log_takes_a_new_limit_over(log, clock):
    log.create(Topic("t"))
    fill(log, 500)
    log.create(Topic("t", retention_bytes=1_000_000))
    for _ in range(30):
        clock.now_ms += 1_001
        log.append("t", [Append(0, b"k", b"x")])
    assert log.end("t", 0) - log.begin("t", 0) < 70 and size_of(log) < ROOM + 2_000_000


def test_a_shrunk_file_has_all_commits_and_opens_again(log, tmp_path):
    log.create(Topic("t"))
    fill(log, 500)
    log.trim("t", 0, 490)
    log.append("t", [Append(0, b"k", b"last")])
    again = SqliteLog(tmp_path)
    assert [r.value for r in again.read("t", 0, 500)] == [b"last"]
    again.close()


def test_a_busy_file_is_shrunk_later(log, tmp_path):
    log.create(Topic("t"))
    log._patience_s = 0.01
    fill(log, 500)
    log.trim("t", 0, 400)
    with sqlite3.connect(log.path("t"), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailable):
            log.trim("t", 0, 490)
    log.trim("t", 0, 490)
    assert size_of(log) < ROOM


def test_retention_goes_by_event_time_and_is_applied_each_second_of_the_machine(tmp_path, monkeypatch):
    machine_ms, applied = [0], []
    pace = Pace(machine_ns=0, event_ms=0, speed=3600, until_ns=2**62)  # an hour a second
    event_clock = EventClock(lambda: pace, lambda: machine_ms[0] * 1_000_000)
    log = SqliteLog(tmp_path, clock=event_clock)
    log.create(Topic("t", 1, retention_ms=3 * 3_600_000))
    retain = log.retain
    monkeypatch.setattr(log, "retain", lambda *given: applied.append(given) or retain(*given))
    for machine_ms[0] in range(0, 5_000, 100):
        log.append("t", [Append(0, b"", b"x")])
    assert 4 <= len(applied) < 25 and 0 < log.begin("t", 0) < 25
