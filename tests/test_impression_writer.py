"""The writer thread: order, group commit, a log that goes away and comes back."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from recsys.log import Append, LogUnavailable, MemoryLog, Topic
from serving.impression_writer import ImpressionWriter, Overloaded


class Log(MemoryLog):
    """A log that can be away, or slow; it counts its appends."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.open = threading.Event()
        self.open.set()
        self.appends = 0
        for name in ("events", "items"):
            self.create(Topic(name))

    def append(self, topic: str, records: Sequence[Append]) -> list[int]:
        self.open.wait(5)
        if self.away:
            raise LogUnavailable("disk full")
        self.appends += 1
        return super().append(topic, records)

    def values(self, topic: str = "events") -> list[bytes]:
        return [record.value for record in self.read(topic, 0, 0, 10_000)]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def writer(log: Log) -> Iterator[ImpressionWriter]:
    made = ImpressionWriter(log, keep_bytes=100, waiting=10, retry_s=0.02)
    made.start()
    yield made
    log.away = False
    log.open.set()
    made.close()


def record(value: bytes) -> Append:
    return Append(0, b"", value)


def until(holds: Any) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline, "it didn't come to that"
        time.sleep(0.002)


def test_events_are_acknowledged_with_their_offsets(writer: ImpressionWriter, log: Log) -> None:
    assert writer.commit("events", [record(b"a"), record(b"b")]).result(5) == [0, 1]
    assert writer.commit("items", [record(b"i")]).result(5) == [0]
    assert log.values() == [b"a", b"b"] and log.values("items") == [b"i"]


def test_what_waits_goes_out_at_once_and_in_order(writer: ImpressionWriter, log: Log) -> None:
    log.open.clear()
    writer.impression("events", record(b"0"))
    until(lambda: not writer._entries)
    writer.impression("events", record(b"1"))
    done = writer.commit("events", [record(b"2"), record(b"3")])
    writer.impression("events", record(b"4"))
    late = writer.commit("events", [record(b"5")])
    log.open.set()
    assert done.result(5) == [2, 3] and late.result(5) == [5]
    assert log.values() == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert log.appends == 2
    until(lambda: writer.kept_bytes == 0)
    assert writer.written == 6 and writer.waiting == 0


def test_impressions_outlast_the_log_and_events_are_refused(
    writer: ImpressionWriter, log: Log
) -> None:
    log.away = True
    assert writer.impression("events", record(b"1"))
    refused = None
    try:
        refused = writer.commit("events", [record(b"event")])
    except LogUnavailable:
        pass  # the first append has failed already
    if refused is not None:
        with pytest.raises(LogUnavailable):
            refused.result(5)
    until(lambda: writer.failing)
    with pytest.raises(LogUnavailable):
        writer.commit("events", [record(b"event")])
    assert writer.impression("events", record(b"2"))
    log.away = False
    until(lambda: len(log.values()) == 2)
    assert log.values() == [b"1", b"2"]
    assert writer.failures > 0 and writer.dropped == 0
    until(lambda: not writer.failing)
    assert writer.commit("events", [record(b"3")]).result(5) == [2]


def test_what_is_kept_is_bounded_and_the_rest_counted(writer: ImpressionWriter, log: Log) -> None:
    log.away = True
    taken = [writer.impression("events", record(b"x" * 30)) for _ in range(5)]
    assert taken == [True, True, True, False, False]
    assert writer.dropped == 2 and writer.kept_bytes == 90
    log.away = False
    until(lambda: writer.kept_bytes == 0)
    assert len(log.values()) == 3
    assert writer.impression("events", record(b"x" * 30))


def test_more_events_than_may_wait_are_refused(writer: ImpressionWriter, log: Log) -> None:
    log.open.clear()
    first = writer.commit("events", [record(b"x")] * 8)
    with pytest.raises(Overloaded, match="8 events wait"):
        writer.commit("events", [record(b"x")] * 3)
    second = writer.commit("events", [record(b"y")] * 2)
    log.open.set()
    assert first.result(5) == list(range(8)) and second.result(5) == [8, 9]
    assert writer.commit("events", [record(b"z")] * 10).result(5)[0] == 10


def test_an_unexpected_error_does_not_end_the_thread(writer: ImpressionWriter, log: Log) -> None:
    with pytest.raises(LogUnavailable, match="nowhere"):
        writer.commit("nowhere", [record(b"x")]).result(5)
    until(lambda: not writer.failing)
    assert writer.commit("events", [record(b"y")]).result(5) == [0]


def test_closing_writes_what_waits(log: Log) -> None:
    writer = ImpressionWriter(log)
    log.open.clear()
    writer.start()
    for i in range(50):
        writer.impression("events", record(b"%d" % i))
    threading.Timer(0.05, log.open.set).start()
    writer.close()
    assert log.values() == [b"%d" % i for i in range(50)]
    assert not writer.impression("events", record(b"late"))
