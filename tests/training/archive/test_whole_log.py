"""Folds read what retention has dropped from the archive, and then the log."""

from pathlib import Path

from benchmarks.harness.archived_log import archive_log
from recsys.config.system_config import Config
from recsys.events.event_types import Tick, encode
from recsys.events.records import EVENTS
from recsys.log.protocol import Append, Log, MemoryLog
from recsys.process.open_log import create_topics
from training.archive.files import files_of, merge_files
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


def test_files_that_are_merged_or_dropped_meanwhile_are_read_on(tmp_path: Path) -> None:
    log, folder = log_of(0), tmp_path / "archive"
    for start in range(0, 500, 100):
        add(log, start, 100)
        archive(log, tmp_path)
    files = files_of(folder, EVENTS)
    expected = all_of(log, 1_000)
    log.trim(EVENTS, PARTITION, 500)
    whole = whole_log(log, tmp_path)
    first = whole.read(EVENTS, PARTITION, 0, 150)
    merge_files(files)
    assert [len(files), len(files_of(folder, EVENTS))] == [5, 1]
    read = [record.value for record in first]
    while records := whole.read(EVENTS, PARTITION, len(read), 150):
        read += [record.value for record in records]
    assert read == expected
    assert all_of(whole_log(log, tmp_path), 1_000) == expected
    [merged] = files_of(folder, EVENTS)
    reader = whole_log(log, tmp_path)
    assert reader.begin(EVENTS, PARTITION) == 0
    merged.path.unlink()
    assert reader.read(EVENTS, PARTITION, 0) == []  # no record is left


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
