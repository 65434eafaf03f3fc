"""The archive within its bytes, and while disk space is low."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from benchmarks.harness.archived_log import archive_log
from plugins.feature_audit.archive_audit import items_of
from plugins.feature_audit.audit_source import AuditSource
from recsys.clock import machine_ms
from recsys.config.system_config import Config
from recsys.events.event_types import Impression, Item, Tick, encode
from recsys.events.records import EVENTS, EXAMPLES, ITEMS
from recsys.log.protocol import Append, LogLost, MemoryLog
from recsys.process.disk_budget import Level, Space
from recsys.process.open_log import create_topics, open_log
from recsys.process.part_process import Heartbeat, Stop, run_folder
from recsys.process.space_file import FILE
from tests.support.training.small_feed import FEATURES, START_MS, append_events, feed, toy_log
from training.archive.files import drop_oldest, files_of, hour_of
from training.archive.writer import PART, Archive, archived_rows
from training.archive_part import BudgetedArchive, run

HOUR_MS = 3_600_000


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*.parquet"))


def append_hour(log, hour, partitions=(0, 1)):
    ticks = [Tick(time_ms=START_MS + hour * HOUR_MS + n) for n in range(20)]
    log.append(EVENTS, [Append(p, b"u", encode(tick)) for p in partitions for tick in ticks])


def archive_hours(log, folder, hours, partitions=(0, 1)):
    archive = Archive(log, folder, lambda: 0)
    for hour in hours:
        append_hour(log, hour, partitions)
        while archive.turn():
            pass
    archive.flush()
    return archive


def hours_of(folder, topic=EVENTS):
    return sorted({hour_of(file.path) - START_MS // HOUR_MS for file in files_of(folder, topic)})


def test_the_oldest_hours_go_until_the_bytes_fit(tmp_path):
    log = toy_log()
    log.append(ITEMS, [Append(0, b"v1", encode(Item(time_ms=START_MS, item_id="v1")))])
    archive_hours(log, tmp_path, range(30))
    items, before = files_of(tmp_path, ITEMS), size_of(tmp_path)
    dropped = drop_oldest(tmp_path, before // 2)
    assert dropped and before // 4 < size_of(tmp_path) <= before // 2
    hours = hours_of(tmp_path)
    assert hours == list(range(hours[0], 30)) and hours[0] > 5
    assert files_of(tmp_path, ITEMS) == items
    assert drop_oldest(tmp_path, before // 2) == 0
    assert not [folder for folder in tmp_path.glob("*/day=*") if not any(folder.iterdir())]


def test_the_newest_file_of_a_partition_stays_so_that_writing_resumes_after_it(tmp_path):
    log = toy_log()
    archive_hours(log, tmp_path, [0], partitions=(1,))  # then it is quiet
    archive_hours(log, tmp_path, range(1, 6), partitions=(0,))
    drop_oldest(tmp_path, 0)
    assert {(f.partition, hour_of(f.path)) for f in files_of(tmp_path, EVENTS)} == {
        (0, START_MS // HOUR_MS + 5),
        (1, START_MS // HOUR_MS),
    }
    again = archive_hours(log, tmp_path, [6])
    assert again.written == 40  # those of the new hour


def test_an_archive_that_begins_later_reads_like_a_log_that_does(tmp_path):
    log = toy_log()
    archive_hours(log, tmp_path, range(10))
    drop_oldest(tmp_path, size_of(tmp_path) // 2)
    source = AuditSource(tmp_path)
    begin = source.begin(EVENTS, 0)
    assert begin > 0
    assert [r.offset for r in source.records(EVENTS, 0)] == list(range(begin, 200))


class Spaces:
    """What the space file says."""

    def __init__(self, level=Level.OK, archive=10**9):
        self.level, self.archive = level, archive

    def read(self):
        return Space(level=self.level, archive=self.archive)


def budgeted(log, folder, space):
    archive = Archive(log, folder, lambda: 0)
    return archive, BudgetedArchive(archive, folder, space)


def offsets(folder, partition=0):
    rows = archived_rows(folder, EVENTS, ("partition", "offset"))
    return [offset for p, offset in rows if p == partition]


def test_while_space_is_low_nothing_is_archived_and_the_log_keeps_it(tmp_path):
    log, space = toy_log(), Spaces()
    archive, part = budgeted(log, tmp_path, space)
    append_hour(log, 0)
    part.turn()
    archive.flush()
    space.level = Level.LOW
    append_hour(log, 1)
    files = files_of(tmp_path, EVENTS)
    for _ in range(3):
        assert part.paused and part.turn() == 0
    archive.flush()
    assert files_of(tmp_path, EVENTS) == files
    assert log.holds(EVENTS, 0)["archive"] == 20
    space.level = Level.OK
    while part.turn():
        pass
    archive.flush()
    assert offsets(tmp_path) == list(range(40)) and archive.missed == 0


def released(folder):
    """An archive that has written an hour, and let go of the log before the next."""
    log, space = toy_log(), Spaces()
    archive, part = budgeted(log, folder, space)
    append_hour(log, 0)
    part.turn()
    archive.flush()
    append_hour(log, 1)
    space.level = Level.LOWER
    part.turn()
    return log, space, archive, part


def test_with_still_less_space_it_holds_nothing_and_says_afterwards_what_it_missed(tmp_path, caplog):
    log, space, archive, part = released(tmp_path)
    assert not log.holds(EVENTS, 0) and not log.holds(EXAMPLES, 1)
    assert log.holds(ITEMS, 0)  # the catalogue is kept
    log.trim(EVENTS, 0, 30)
    space.level = Level.OK
    while part.turn():
        pass
    archive.flush()
    assert offsets(tmp_path) == [*range(20), *range(30, 40)]
    assert offsets(tmp_path, 1) == list(range(40))
    assert archive.missed == 10 and "20 to 29 aren't archived" in caplog.text
    assert log.holds(EVENTS, 0)["archive"] == 40
    assert Archive(log, tmp_path, lambda: 0).offsets(EVENTS)[:2] == [40, 40]  # after a restart, too


def test_what_goes_while_the_archive_begins_to_hold_again_is_missed(tmp_path, monkeypatch):
    log, space, archive, part = released(tmp_path)
    log.trim(EVENTS, 0, 30)
    space.level = Level.OK
    asked = []

    def begin(topic, partition):
        offset = MemoryLog.begin(log, topic, partition)
        if (topic, partition) == (EVENTS, 0) and not asked:
            asked.append(offset)
            log.trim(topic, partition, offset + 1)  # as another process may
        return offset

    monkeypatch.setattr(log, "begin", begin)
    while part.turn():
        pass
    archive.flush()
    assert asked == [30] and offsets(tmp_path) == [*range(20), *range(31, 40)]
    assert archive.missed == 11 and log.holds(EVENTS, 0)["archive"] == 40


def test_retention_that_does_not_wait_passes_a_slow_archive(tmp_path, caplog):
    class Brokers(MemoryLog):
        """Drops what it likes, as Kafka does."""

        def holds(self, topic, partition):
            return {}

    log = Brokers()
    create_topics(log, Config())
    archive = Archive(log, tmp_path, lambda: 0)
    append_hour(log, 0)
    archive.turn()
    log.trim(EVENTS, 0, 10)  # before what it has read is written
    append_hour(log, 1)
    log.trim(EVENTS, 0, 25)
    while archive.turn() or archive.offsets(EVENTS)[0] < 40:
        pass
    log.trim(EVENTS, 1, 40)  # and what it has read meanwhile
    archive.flush()
    assert offsets(tmp_path) == [*range(20), *range(25, 40)]
    assert offsets(tmp_path, 1) == list(range(40))
    assert archive.missed == 5 and "events/0: the records 20 to 24 aren't archived" in caplog.text


def test_the_part_removes_what_the_budget_does_not_allow(tmp_path):
    log = toy_log()
    archive_hours(log, tmp_path, range(10))
    _, part = budgeted(log, tmp_path, Spaces(Level.LOW, archive=0))
    part.turn()
    assert part.dropped and hours_of(tmp_path) == [9]
    _, part = budgeted(log, tmp_path, SimpleNamespace(level=Level.OK, read=lambda: None))
    part.turn()
    assert part.dropped == 0  # unknown: nothing is removed


@pytest.mark.parametrize("most", [0, 10**9])
def test_an_empty_archive_has_nothing_to_remove(tmp_path, most):
    assert drop_oldest(tmp_path, most) == 0


@pytest.mark.slow
def test_the_part_reports_that_it_is_paused(tmp_path):
    config = replace(Config(), state=str(tmp_path))
    log = open_log(config)
    create_topics(log, config)
    append_hour(log, 0)
    space = Space(level=Level.LOW, time_ms=machine_ms())
    (run_folder(tmp_path) / FILE).write_bytes(msgspec.json.encode(space))
    stop = Stop(Heartbeat(PART))
    part = threading.Thread(target=run, args=(config, stop))
    part.start()
    while not (gauges := stop.heartbeat.now().gauges) and part.is_alive():
        time.sleep(0.05)
    stop.set()
    part.join()
    assert gauges["paused"] == 1.0 and not files_of(tmp_path / "archive", EVENTS)
    log.close()


def test_an_archive_answers_as_the_log_it_was_written_from(tmp_path):
    log = toy_log()
    append_events(log, feed(60))
    for n in range(5):
        log.append(ITEMS, [Append(0, b"v", encode(Item(time_ms=START_MS + n, item_id=f"v{n % 3}")))])
    archive_log(log, tmp_path)
    source = AuditSource(tmp_path)
    assert source.id == log.id and source.partitions(ITEMS) == 1
    for partition in range(log.partitions(EVENTS)):
        end = log.end(EVENTS, partition)
        assert (source.begin(EVENTS, partition), source.end(EVENTS, partition)) == (0, end)
        assert source.read(EVENTS, partition, 2, 3) == log.read(EVENTS, partition, 2, 3)
        assert source.read(EVENTS, partition, end) == []
        for beyond in (-1, end + 1):
            with pytest.raises(LogLost, match=f"offset {beyond} isn't archived.* 0 to {end}"):
                source.read(EVENTS, partition, beyond)
    record = log.read(EVENTS, 0, 4, 1)[0]
    source.keep({record.key})
    own = [r.offset for r in log.read(EVENTS, 0, 0) if r.key == record.key]
    assert source.keyed(EVENTS, 0, [record.key], own[-1]) == own[:-1] != []
    assert source.read(EVENTS, 0, 4, 1) == [record]
    assert source.read(ITEMS, 0, 4, 1) == log.read(ITEMS, 0, 4, 1)  # not an event of that place
    assert items_of(source, FEATURES).end == 5
    shown = [(p.partition, p.offset) for p in source.impressions()]
    events = ((p, at, e) for p in range(log.partitions(EVENTS)) for at, e in source.events(p))
    assert shown == [(p, at) for p, at, e in events if isinstance(e, Impression)] != []


def test_a_folder_without_events_is_no_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no archived events: give the folder"):
        AuditSource(tmp_path)
