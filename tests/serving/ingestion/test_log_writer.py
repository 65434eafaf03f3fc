"""The writer thread: order, group commit, a log that goes away and comes back."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from recsys.events.control_records import Erasure
from recsys.events.event_types import Impression, decode, encode
from recsys.events.records import pack
from recsys.log.protocol import Append, LogUnavailable, MemoryLog, Topic
from serving.ingestion.disk_spool import DiskSpool, Waiting
from serving.ingestion.log_writer import CLOSED, FORGOTTEN, FULL, REFUSED, LogWriter, Overloaded


class Log(MemoryLog):
    """A log that can be away, or slow; it counts its appends."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.open = threading.Event()
        self.open.set()
        self.appends, self.slow_s = 0, 0.0
        for name in ("events", "items", "control"):
            self.create(Topic(name))

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        self.open.wait(5)
        if self.away:
            raise LogUnavailable("disk full")
        time.sleep(self.slow_s)
        self.appends += 1
        return super().append(topic, records)

    def values(self, topic: str = "events") -> list[bytes]:
        return [record.value for record in self.read(topic, 0, 0, 10_000)]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def writer(log: Log) -> Iterator[LogWriter]:
    made = LogWriter(log, keep_bytes=100, max_waiting=10, retry_s=0.02)
    made.start()
    yield made
    log.away = False
    log.open.set()
    made.close()


def record(value: bytes) -> Append:
    return Append(0, b"", value)


def until(holds: Any) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it didn't come to that"
        time.sleep(0.002)


def test_events_are_acknowledged_with_their_offsets(writer: LogWriter, log: Log) -> None:
    assert writer.commit("events", [record(b"a"), record(b"b")]).result(30) == [0, 1]
    assert writer.commit("items", [record(b"i")]).result(30) == [0]
    assert log.values() == [b"a", b"b"] and log.values("items") == [b"i"]


def test_what_waits_goes_out_at_once_and_in_order(writer: LogWriter, log: Log) -> None:
    log.open.clear()
    writer.impression("events", record(b"0"))
    until(lambda: not writer._entries)
    writer.impression("events", record(b"1"))
    done = writer.commit("events", [record(b"2"), record(b"3")])
    writer.impression("events", record(b"4"))
    late = writer.commit("events", [record(b"5")])
    log.open.set()
    assert done.result(30) == [2, 3] and late.result(30) == [5]
    assert log.values() == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert log.appends == 2
    until(lambda: writer.kept_bytes == 0)
    assert writer.waiting == 0


def test_impressions_outlast_the_log_and_events_are_refused(writer: LogWriter, log: Log) -> None:
    log.away = True
    assert writer.impression("events", record(b"1"))
    refused = None
    with suppress(LogUnavailable):  # the first append has failed already
        refused = writer.commit("events", [record(b"event")])
    if refused is not None:
        with pytest.raises(LogUnavailable):
            refused.result(30)
    until(lambda: writer.failing)
    with pytest.raises(LogUnavailable):
        writer.commit("events", [record(b"event")])
    assert writer.impression("events", record(b"2"))
    log.away = False
    until(lambda: len(log.values()) == 2)
    assert log.values() == [b"1", b"2"]
    assert writer.failures > 0 and writer.dropped == 0
    until(lambda: not writer.failing)
    assert writer.commit("events", [record(b"3")]).result(30) == [2]


def test_what_is_kept_is_bounded_and_the_rest_counted(writer: LogWriter, log: Log) -> None:
    log.away = True
    taken = [writer.impression("events", record(b"x" * 30)) for _ in range(5)]
    assert taken == [True, True, True, False, False]
    assert writer.dropped == 2 and writer.kept_bytes == 90
    log.away = False
    until(lambda: writer.kept_bytes == 0)
    assert len(log.values()) == 3
    assert writer.impression("events", record(b"x" * 30))


def test_more_events_than_may_wait_are_refused(writer: LogWriter, log: Log) -> None:
    log.open.clear()
    first = writer.commit("events", [record(b"x")] * 8)
    with pytest.raises(Overloaded, match="8 events wait"):
        writer.commit("events", [record(b"x")] * 3)
    second = writer.commit("events", [record(b"y")] * 2)
    log.open.set()
    assert first.result(30) == list(range(8)) and second.result(30) == [8, 9]
    assert writer.commit("events", [record(b"z")] * 10).result(30)[0] == 10


def test_an_unexpected_error_does_not_end_the_thread(writer: LogWriter, log: Log) -> None:
    with pytest.raises(LogUnavailable, match="nowhere"):
        writer.commit("nowhere", [record(b"x")]).result(30)
    until(lambda: not writer.failing)
    assert writer.commit("events", [record(b"y")]).result(30) == [0]


def test_closing_writes_what_waits(log: Log) -> None:
    writer = LogWriter(log)
    log.open.clear()
    writer.start()
    for i in range(50):
        writer.impression("events", record(b"%d" % i))
    threading.Timer(0.05, log.open.set).start()
    writer.close()
    assert log.values() == [b"%d" % i for i in range(50)]
    assert not writer.impression("events", record(b"late"))


class Disk:
    """A writer that spools to disk, with its log."""

    def __init__(self, folder: Path, log: Log | None = None, **more: int) -> None:
        self.log, self.spool = log or Log(), DiskSpool(folder, "log", more.pop("disk", 1 << 20))
        self.writer = LogWriter(
            self.log, keep_bytes=more.pop("keep_bytes", 1000), retry_s=0.01, spool=self.spool
        )
        self.writer.start()

    def show(self, *numbers: int) -> None:
        for n in numbers:
            self.writer.impression("events", record(b"%d" % n))

    def numbers(self) -> list[int]:
        return [int(value) for value in self.log.values()]


def test_what_is_kept_goes_to_disk_and_comes_back_in_order_before_any_event(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.log.away = True
    disk.show(*range(50))
    until(lambda: disk.writer.on_disk_bytes and not disk.writer.kept_bytes)
    disk.show(*range(50, 80))
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            disk.writer.commit("events", [record(b"-1")])
        time.sleep(0.02)
    disk.log.away = False
    until(lambda: not disk.writer.on_disk_bytes and not disk.writer.kept_bytes)
    until(lambda: disk.writer.commit("events", [record(b"99")]).result(30))
    assert disk.numbers() == [*range(80), 99]
    assert disk.writer.dropped == 0
    disk.writer.close()
    assert list(tmp_path.iterdir()) == []


def test_an_event_never_passes_an_impression_that_waits_on_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path, keep_bytes=10_000)
    disk.log.away = True
    disk.show(*range(1200))  # more than one batch
    until(lambda: disk.writer.on_disk_bytes)
    disk.log.slow_s = 0.02  # while it sends what is kept, more comes
    disk.log.away = False
    taken, shown = None, 1200
    while taken is None:
        disk.show(shown)
        shown += 1
        try:
            taken = disk.writer.commit("events", [record(b"-1")])
        except LogUnavailable:
            time.sleep(0.001)
    assert taken.result(30) == [shown]
    assert disk.numbers() == [*range(shown), -1]
    disk.writer.close()


def test_a_replica_that_ends_while_the_log_is_away_leaves_it_to_the_next(tmp_path: Path) -> None:
    first = Disk(tmp_path)
    first.log.away = True
    first.show(1, 2, 3)
    first.writer.close()
    assert first.writer.dropped == 0
    second = Disk(tmp_path, log=Log())
    until(lambda: second.numbers() == [1, 2, 3])
    second.show(4)
    until(lambda: second.numbers() == [1, 2, 3, 4])
    second.writer.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_and_disk_are_bounded_and_what_is_over_is_counted(tmp_path: Path) -> None:
    disk = Disk(tmp_path, keep_bytes=100, disk=600)
    disk.log.away = True
    chance, shown, most = random.Random(7), 0, 0
    while disk.writer.drops[FULL] < 20:
        disk.show(shown)
        shown += 1
        most = max(most, disk.writer.kept_bytes)
        assert disk.writer.on_disk_bytes <= 600
        time.sleep(0.001 * (chance.random() < 0.3))
    disk.log.away = False
    until(lambda: not disk.writer.kept_bytes and not disk.writer.on_disk_bytes)
    found = disk.numbers()
    assert most <= 100 and found == sorted(set(found))
    assert len(found) + disk.writer.dropped == shown and set(disk.writer.drops) == {FULL, "torn"}
    disk.writer.close()
    assert not disk.writer.impression("events", record(b"late"))
    assert disk.writer.drops[CLOSED] == 1


def test_a_log_that_goes_and_comes_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    disk, chance = Disk(tmp_path), random.Random(3)
    for n in range(400):
        disk.show(n)
        if chance.random() < 0.05:
            disk.log.away = not disk.log.away
            time.sleep(0.02 * chance.random())
    disk.log.away = False
    until(lambda: not disk.writer.kept_bytes and not disk.writer.on_disk_bytes)
    assert disk.numbers() == list(range(400)) and disk.writer.dropped == 0
    disk.writer.close()


def test_a_record_that_the_log_never_takes_keeps_nobody_back(writer: LogWriter, log: Log) -> None:
    log.open.clear()
    writer.impression("events", record(b"0"))
    until(lambda: not writer._entries)
    writer.impression("events", record(b"1"))
    writer.impression("events", Append(5, b"", b"no such partition"))
    writer.impression("events", record(b"2"))
    log.open.set()
    until(lambda: writer.kept_bytes == 0)
    assert log.values() == [b"0", b"1", b"2"] and writer.drops == {REFUSED: 1}


def test_the_thread_outlives_whatever_goes_wrong_in_it(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = DiskSpool(tmp_path, "log", 1 << 20)
    writer = LogWriter(log, retry_s=0.02, spool=spool)
    log.away = True
    writer.start()
    writer.impression("events", record(b"0"))
    until(lambda: writer.on_disk_bytes > 0)
    peek, failures = spool.peek, iter([MemoryError("by chance"), OSError("no space")])

    def broken(most: int) -> list[Waiting]:
        for error in failures:
            raise error
        return peek(most)

    monkeypatch.setattr(spool, "peek", broken)
    log.away = False
    writer.impression("events", record(b"1"))
    until(lambda: log.end("events", 0) == 2)
    writer.close()
    assert log.values() == [b"0", b"1"]


def broken(*_: object) -> Any:
    raise MemoryError("no memory")


def test_what_cannot_be_put_on_disk_stays_in_memory_and_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    monkeypatch.setattr(disk.spool, "append", broken)
    disk.log.away = True
    disk.show(0, 1)
    until(lambda: disk.writer._failures_in_a_row > 3)
    disk.show(2)
    assert disk.writer.kept_bytes == 3
    disk.log.away = False  # and "put" still fails
    until(lambda: disk.writer.kept_bytes == 0)
    until(lambda: not disk.writer.failing)
    assert disk.writer.commit("events", [record(b"3")]).result(30) == [3]
    assert disk.numbers() == [0, 1, 2, 3] and disk.writer.dropped == 0
    disk.writer.close()


def test_what_cannot_be_put_on_disk_at_the_end_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path)
    disk.log.away = True
    disk.show(0)
    until(lambda: disk.writer.on_disk_bytes and not disk.writer.kept_bytes)
    monkeypatch.setattr(disk.spool, "append", broken)
    disk.show(1, 2)
    disk.writer.close()
    assert disk.writer.drops[CLOSED] == 2
    after = DiskSpool(tmp_path, "log", 1 << 20)
    after.adopt()  # it was let go of
    assert after.peek(5) == [("events", record(b"0"))]


def test_a_folder_that_cannot_be_searched_does_not_end_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.ingestion.log_writer._ADOPT_EVERY_S", 0.0)
    monkeypatch.setattr(DiskSpool, "adopt", broken)
    disk = Disk(tmp_path)
    disk.show(0)
    until(lambda: disk.numbers() == [0])
    assert disk.writer.commit("events", [record(b"1")]).result(30) == [1]
    assert disk.writer._thread.is_alive() and not disk.writer.failing
    disk.writer.close()


def test_while_the_disk_cannot_be_read_what_comes_is_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Disk(tmp_path)
    first.log.away = True
    first.show(0)
    first.writer.close()
    with monkeypatch.context() as patch:
        patch.setattr(DiskSpool, "peek", broken)
        disk = Disk(tmp_path)
        disk.show(1, 2)
        until(lambda: disk.spool.own_pending and not disk.writer.kept_bytes)
    until(lambda: disk.numbers() == [0, 1, 2])
    disk.writer.close()
    assert list(tmp_path.iterdir()) == []


def test_spooled_impressions_of_a_user_who_was_forgotten_since_are_dropped(tmp_path: Path) -> None:
    """A replica ended with them on disk; then the user asked to be forgotten, and came back."""
    log, users = Log(), ("u1", "u2")
    spool = DiskSpool(tmp_path, log.id, 1 << 20)

    def shown(user: str, time_ms: int) -> Append:
        impression = Impression(time_ms=time_ms, request_id=f"{user}-{time_ms}", user_id=user, items=[])
        return Append(0, user.encode(), encode(impression))

    spool.append([("events", shown(user, time_ms)) for user in users for time_ms in (5, 7)])
    spool.append([("events", Append(0, b"u1", b"unreadable"))])
    spool.close()
    for erasure in (Erasure(user_id="u1", time_ms=6), Erasure(user_id="", time_ms=9)):
        log.append("control", [Append(0, b"", pack(erasure))])
    writer = LogWriter(log, retry_s=0.02, spool=DiskSpool(tmp_path, log.id, 1 << 20))
    writer.start()
    until(lambda: list(tmp_path.iterdir()) == [])
    writer.close()
    sent = [decode(value) for value in log.values()]
    assert [e.request_id for e in sent if isinstance(e, Impression)] == ["u1-7", "u2-5", "u2-7"]
    assert writer.drops[FORGOTTEN] == 2 == writer.dropped
