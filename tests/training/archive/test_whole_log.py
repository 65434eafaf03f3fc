"""Folds read what retention has dropped from the archive, and then the log."""

from pathlib import Path

from benchmarks.harness.archived_log import archive_log
from recsys.config.system_config import Config
from recsys.events.event_types import Tick, encode
from recsys.events.records import EVENTS
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.process.open_log import create_topics
from training.archive.whole_log import whole_log

PARTITION = 1


def log_of(count: int) -> MemoryLog:
    log = MemoryLog()
    create_topics(log, Config())
    add(log, 0, count)
    return log


def add(log: Log, start: int, count: int) -> None:
    events = [Tick(time_ms=n) for n in range(start, start + count)]
    log.append(EVENTS, [Append(PARTITION, b"", encode(event)) for event in events])


def archive(log: Log, state: Path) -> None:
    archive_log(log, state / "archive")


def all_of(log: Log, limit: int) -> list[bytes]:
    """Values from the beginning on, as a fold reads them."""
    values, offset = [], log.begin(EVENTS, PARTITION)
    while records := log.read(EVENTS, PARTITION, offset, limit):
        values += [record.value for record in records]
        offset = records[-1].offset + 1
    return values


def test_a_trimmed_log_is_read_whole(tmp_path: Path) -> None:
    log, every = log_of(2_500), log_of(2_600)
    expected = all_of(every, 1_000)
    archive(log, tmp_path)
    log.trim(EVENTS, PARTITION, 2_200)
    whole = whole_log(log, tmp_path)
    assert whole.begin(EVENTS, PARTITION) == 0 and whole.begin(EVENTS, 0) == 0
    add(log, 2_500, 100)
    for limit in (7, 200, 1_000):
        assert all_of(whole, limit) == expected
    assert whole.read(EVENTS, PARTITION, 1_000, 3)[0].offset == 1_000  # after a restart, anywhere
    assert whole.end(EVENTS, PARTITION) == 2_600 and whole.id == log.id


def test_the_archive_grows_with_the_log(tmp_path: Path) -> None:
    log = log_of(100)
    archive(log, tmp_path)
    log.trim(EVENTS, PARTITION, 50)
    whole = whole_log(log, tmp_path)
    assert whole.begin(EVENTS, PARTITION) == 0
    add(log, 100, 100)
    archive(log, tmp_path)
    log.trim(EVENTS, PARTITION, 180)
    assert len(all_of(whole, 30)) == 200


def test_without_an_archive_up_to_it_the_log_begins_where_it_does(tmp_path: Path) -> None:
    log = log_of(100)
    log.trim(EVENTS, PARTITION, 40)
    assert whole_log(log, tmp_path).begin(EVENTS, PARTITION) == 40
    assert len(all_of(whole_log(log, tmp_path), 30)) == 60


def test_a_hold_before_the_log_is_one_at_its_beginning(tmp_path: Path) -> None:
    log = log_of(100)
    archive(log, tmp_path)
    log.trim(EVENTS, PARTITION, 40)
    whole_log(log, tmp_path).hold("fold", EVENTS, PARTITION, 10)
    assert log.holds(EVENTS, PARTITION)["fold"] == 40
