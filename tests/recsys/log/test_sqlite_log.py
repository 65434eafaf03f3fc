"""What only the SQLite log does: retention by age and bytes, several processes, crashes, files gone."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from recsys.log import sqlite_files, sqlite_log, sqlite_mark
from recsys.log.protocol import Append, LogLost, LogUnavailable, Record, Topic
from recsys.log.sqlite_log import SqliteLog
from tests.support.paths import ROOT

HOUR_MS = 3_600_000


class Clock:
    def __init__(self, now_ms: int = 0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def some(count: int, partition: int = 0, size: int = 10) -> list[Append]:
    return [Append(partition, b"", b"%0*d" % (size, i)) for i in range(count)]


def in_process(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Runs Python code in a process of its own; ``sys.argv[1:]`` are the arguments."""
    head = "import sys, time\nfrom recsys.log.protocol import *\n"
    head += "from recsys.log.sqlite_log import SqliteLog\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def drop_all(log: SqliteLog, topic: str, now_ms: int) -> int:
    total = 0
    while dropped := log.retain(topic, now_ms):
        total += dropped
    return total


# --- retention ---


def test_what_is_old_is_dropped_by_its_append_time(tmp_path: Path) -> None:
    clock = Clock(HOUR_MS)
    log = SqliteLog(tmp_path, clock=clock)
    log.create(Topic("t", 2, retention_ms=HOUR_MS))
    log.append("t", some(10))
    clock.now_ms += HOUR_MS // 2
    log.append("t", some(5))
    assert drop_all(log, "t", clock.now_ms + HOUR_MS // 2) == 0
    assert drop_all(log, "t", clock.now_ms + HOUR_MS // 2 + 1) == 10
    assert (log.begin("t", 0), log.end("t", 0)) == (10, 15)
    assert drop_all(log, "t", clock.now_ms + 3 * HOUR_MS) == 5
    assert log.append("t", some(1)) == [15]


def test_what_is_beyond_the_bytes_is_dropped_in_each_partition(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t", 2, retention_bytes=100))
    log.append("t", some(15, partition=0) + some(3, partition=1))
    drop_all(log, "t", 0)
    assert (log.begin("t", 0), log.begin("t", 1)) == (5, 0)
    log.append("t", some(4))
    drop_all(log, "t", 0)
    assert log.begin("t", 0) == 9  # the count of bytes is right after dropping


def test_retention_stops_at_what_is_held(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, clock=Clock())
    log.create(Topic("t", 1, retention_ms=1))
    log.append("t", some(10))
    log.hold("fold", "t", 0, 4)
    assert drop_all(log, "t", HOUR_MS) == 4
    SqliteLog(tmp_path).hold("fold", "t", 0, 7)  # by another process
    assert drop_all(log, "t", HOUR_MS) == 3
    log.release("fold", "t")
    assert drop_all(log, "t", HOUR_MS) == 3


def test_a_topic_without_retention_keeps_all(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, clock=Clock())
    log.create(Topic("t"))
    log.append("t", some(10))
    assert log.retain("t", 1 << 60) == 0
    log.create(Topic("t", retention_ms=1))  # another configuration takes effect
    assert log.retain("t", 1 << 60) == 10


def test_appending_alone_keeps_a_topic_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_log, "SLICE", 50)
    clock = Clock()
    log = SqliteLog(tmp_path, clock=clock)
    log.create(Topic("t", retention_ms=10_000))
    for _ in range(200):
        clock.now_ms += 500
        log.append("t", some(10))
    held = log.end("t", 0) - log.begin("t", 0)
    assert 200 <= held <= 300  # ten seconds' worth, and what wasn't due yet


# --- processes ---


def test_processes_append_at_once_and_lose_nothing(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t", 2))
    code = """
        log = SqliteLog(sys.argv[1])
        for i in range(100):
            log.append("t", [Append(p, sys.argv[2].encode(), b"%d" % i) for p in (0, 1)])
        """
    writers = [in_process(code, tmp_path, who) for who in range(3)]
    read: list[list[tuple[bytes, bytes]]] = [[], []]
    while any(w.poll() is None for w in writers) or any(len(r) < log.end("t", 0) for r in read):
        for partition in (0, 1):
            records = log.read("t", partition, len(read[partition]))
            read[partition] += [(r.key, r.value) for r in records]
        log.wait("t", 0.01)
    assert [w.returncode for w in writers] == [0, 0, 0]
    for records in read:
        for who in range(3):
            mine = [int(value) for key, value in records if key == b"%d" % who]
            assert mine == list(range(100))


def test_processes_that_create_at_once_make_one_log(tmp_path: Path) -> None:
    code = """
        log = SqliteLog(sys.argv[1] + "/log")
        for i in range(5):
            log.create(Topic(f"t{i}", 2))
            log.append(f"t{i}", [Append(0, b"", b"x")])
        print(log.id)
        """
    makers = [in_process(code, tmp_path) for _ in range(4)]
    ids = {maker.communicate(timeout=60)[0] for maker in makers}
    assert [maker.returncode for maker in makers] == [0] * 4
    log = SqliteLog(tmp_path / "log")
    assert ids == {log.id + "\n"}
    assert [log.end(f"t{i}", 0) for i in range(5)] == [4] * 5
    assert not list((tmp_path / "log").glob(".t*"))


def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    code = """
        log = SqliteLog(sys.argv[1])
        log.create(Topic("t"))
        for i in range(1_000_000):
            offsets = log.append("t", [Append(0, b"", b"%d" % (3 * i + j)) for j in range(3)])
            print(offsets[-1], flush=True)
        """
    writer = in_process(code, tmp_path)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(100)][-1]
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().split("\n")[:-1]
    writer.wait()
    acknowledged = int(rest[-1]) if rest else acknowledged
    log = SqliteLog(tmp_path)
    end = log.end("t", 0)
    assert end > acknowledged
    assert end % 3 == 0  # a batch is there whole, or not at all
    records = log.read("t", 0, 0, end)
    assert [int(r.value) for r in records] == [r.offset for r in records] == list(range(end))
    assert log.append("t", some(1)) == [end]


@pytest.mark.slow
def test_the_wal_stays_bounded_while_a_reader_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_files, "WAL_BYTES", 1 << 20)
    log = SqliteLog(tmp_path)
    log.create(Topic("t"))
    done = threading.Event()

    def read_on() -> None:
        at = 0
        while not done.is_set():
            at += len(log.read("t", 0, at, 50))

    reader = threading.Thread(target=read_on, daemon=True)
    reader.start()
    # One that stays inside of the WAL keeps it from starting over: it grows, until he has gone.
    stuck = sqlite3.connect(tmp_path / "t.sqlite", isolation_level=None)
    stuck.execute("BEGIN")
    stuck.execute("SELECT count(*) FROM records").fetchone()
    wal = tmp_path / "t.sqlite-wal"
    for _ in range(64):
        log.append("t", some(20, size=4000))
    assert wal.stat().st_size > 4 << 20
    stuck.execute("COMMIT")
    stuck.close()
    for _ in range(64):
        log.append("t", some(1))
    assert wal.stat().st_size < 2 << 20
    done.set()
    reader.join()


def test_waiting_costs_little(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t"))
    log.wait("t", 0.0)
    used, started = time.thread_time(), time.monotonic()
    log.wait("t", 0.4)
    assert time.monotonic() - started >= 0.4
    assert time.thread_time() - used < 0.1


@pytest.mark.parametrize("has_inotify", [True, False])
def test_a_commit_wakes_waiting_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_inotify: bool
) -> None:
    if not has_inotify:
        monkeypatch.setattr(sqlite_mark.ctypes, "CDLL", lambda name: object())
    elif not sys.platform.startswith("linux"):
        pytest.skip("no inotify")
    else:
        monkeypatch.setattr(sqlite_mark, "POLL_S", 10.0)
        monkeypatch.setattr(sqlite_mark, "UNSEEN_S", 10.0)
    log, writer = SqliteLog(tmp_path), SqliteLog(tmp_path)
    log.create(Topic("t"))
    log.wait("t", 0.0)
    later = threading.Timer(0.2, lambda: writer.append("t", some(1)))
    later.start()
    started = time.monotonic()
    log.wait("t", 10.0)
    assert 0.1 < time.monotonic() - started < 5
    assert log.end("t", 0) == 1
    later.join()


# --- files ---


def test_a_topic_file_that_is_gone_is_a_lost_log(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t"))
    log.append("t", some(3))
    log.close()
    for file in tmp_path.glob("t.sqlite*"):
        file.unlink()
    again = SqliteLog(tmp_path)
    for act in (lambda: again.read("t", 0, 3), lambda: again.create(Topic("t"))):
        with pytest.raises(LogLost, match="is gone"):
            act()


def test_a_topic_file_of_another_log_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        log = SqliteLog(tmp_path / name)
        log.create(Topic("t"))
        log.close()
    shutil.copy(tmp_path / "a" / "t.sqlite", tmp_path / "b" / "t.sqlite")
    with pytest.raises(LogLost, match="belongs to log"):
        SqliteLog(tmp_path / "b").end("t", 0)


def test_a_new_folder_is_another_log(tmp_path: Path) -> None:
    first = SqliteLog(tmp_path / "log").id
    assert SqliteLog(tmp_path / "log").id == first
    shutil.rmtree(tmp_path / "log")
    assert SqliteLog(tmp_path / "log").id != first


def test_a_topic_made_just_before_a_crash_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t", 2))
    log.append("t", some(2))
    log.close()
    catalogue = sqlite3.connect(tmp_path / "catalogue.db")
    catalogue.execute("DELETE FROM topics")
    catalogue.commit()
    catalogue.close()
    again = SqliteLog(tmp_path)
    again.create(Topic("t", 2))
    assert again.end("t", 0) == 2


def test_a_lock_never_given_back_is_said(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path, patience_s=0.1)
    log.create(Topic("t"))
    other = sqlite3.connect(tmp_path / "t.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LogUnavailable, match="locked.*See that its disk"):
        log.append("t", some(1))
    assert log.read("t", 0, 0) == []  # reading goes on
    other.execute("ROLLBACK")
    other.close()
    assert log.append("t", some(1)) == [0]


def test_a_full_disk_is_said_and_nothing_half_stays(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t"))
    log.append("t", some(1))
    db = log.connection("t").db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(LogUnavailable, match="full"):
        log.append("t", some(100, size=4000))
    db.execute("PRAGMA max_page_count = 1000000")
    assert log.append("t", some(1)) == [1]


def test_names_that_are_no_files_are_refused() -> None:
    for name in ("", "../t", "a/b", "ü", "x" * 101):
        with pytest.raises(ValueError, match="topic name"):
            Topic(name)


# --- forgetting ---


def test_nothing_of_what_was_replaced_stays_in_the_files(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t", 1))
    log.append("t", [Append(0, b"user-%d" % n, b"secret-%d " % n * 900) for n in range(20)])
    assert log.replace("t", 0, [Record(n, b"", b"x") for n in range(0, 20, 2)]) == 10
    files = b"".join(path.read_bytes() for path in tmp_path.glob("t.sqlite*"))
    for n in range(20):
        assert (b"secret-%d " % n in files) == (b"user-%d" % n in files) == (n % 2 == 1)
    (size,) = (
        sqlite3.connect(tmp_path / "t.sqlite")
        .execute("SELECT bytes FROM bounds WHERE partition = 0")
        .fetchone()
    )
    kept = [record for record in log.read("t", 0, 0)]
    assert size == sum(len(record.key) + len(record.value) for record in kept)


def test_scrubbed_files_have_no_copy_that_sqlite_left_behind(tmp_path: Path) -> None:
    """Partitions in turns and records of many sizes: pages are split, and keep copies of what moved."""
    log, draw = SqliteLog(tmp_path), random.Random(1)
    log.create(Topic("t", 8))
    for n in range(300):
        key = b"victim" if n % 4 == 0 else b"other"
        partition = 3 if n % 4 == 0 else draw.randrange(8)
        text = b"SECRET-%s " % key + draw.randbytes(draw.randrange(500, 3000))
        log.append("t", [Append(partition, key, text)])
    offsets = log.keyed("t", 3, [b"victim"], 1 << 60)
    assert log.replace("t", 3, [Record(n, b"", b"x") for n in offsets]) == 75
    before = [log.read("t", partition, 0) for partition in range(8)]
    assert log.scrub("t")
    files = b"".join(path.read_bytes() for path in tmp_path.glob("t.sqlite*"))
    assert files.count(b"SECRET-other") == 225 and b"victim" not in files
    assert [log.read("t", partition, 0) for partition in range(8)] == before
    log.append("t", [Append(0, b"k", b"v")])


def test_a_reader_in_the_old_pages_and_a_full_disk_put_scrubbing_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SqliteLog(tmp_path)
    log.create(Topic("t", 1))
    log.append("t", [Append(0, b"user", b"secret") for _ in range(5)])
    reader = sqlite3.connect(tmp_path / "t.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM records").fetchone()
    log.replace("t", 0, [Record(n, b"", b"x") for n in range(5)])
    assert not log.scrub("t")
    reader.close()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_files, "_ROOM", 1 << 60)
        assert not log.scrub("t")
    assert log.scrub("t")
    assert b"secret" not in b"".join(path.read_bytes() for path in tmp_path.glob("t.sqlite*"))
