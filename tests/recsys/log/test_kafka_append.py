"""Appends to Kafka that fail, and logs that were truncated."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from recsys.log.kafka_client import LogTruncated
from recsys.log.kafka_log import KafkaLog
from recsys.log.protocol import Append, LogUnavailable


class Following:
    """A thread's tail that follows some partitions, whose ends it knows from before."""

    def __init__(self, ends: dict[int, int]) -> None:
        self.ends = ends

    def end(self, topic: str, partition: int) -> int | None:
        return self.ends.get(partition)

    def leave(self, topic: str, partition: int) -> None:
        self.ends.pop(partition, None)


def test_after_one_that_may_have_been_committed_the_broker_is_asked_for_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def send(*_: Any) -> None:
        raise KafkaTimeoutError("no acknowledgement")

    log: Any = object.__new__(KafkaLog)
    log._config, log._url, log._patience_s = SimpleNamespace(prefix=""), "kafka://b:1", 1.0
    log._lock, log._local, log._appends = threading.RLock(), threading.local(), 0
    log._appended, log._partitions, log._truncated = {}, {"t": 2}, None
    log._producer = SimpleNamespace(send=send, close=lambda timeout_s: None)
    monkeypatch.setattr(log, "_check_id", lambda now=False: None)
    log._local.tail = Following({0: 4, 1: 4})
    reader = SimpleNamespace(end=lambda partition: 5, forget_ends=lambda: forgotten.append(1))
    log._local.readers, forgotten = {"t": (reader, 0)}, list[int]()
    assert log.end("t", 0) == 4
    with pytest.raises(LogUnavailable, match="0 of 1 records were acknowledged"):
        log.append("t", [Append(0, b"", b"a")])
    assert log.end("t", 0) == 5 and forgotten
    assert log.end("t", 1) == 4  # of which nothing was appended


def test_a_truncated_log_is_lost_for_good() -> None:
    """kafka-python says so once, and some readers take a LogLost of one topic for its retention."""

    def wait(topic: str, timeout_s: float) -> bool:
        raise LogTruncated("t: the brokers have lost records")

    log: Any = object.__new__(KafkaLog)
    log._config, log._id, log._truncated = SimpleNamespace(prefix=""), "", None
    log._partitions, log._local = {"t": 1, "other": 1}, threading.local()
    log._local.tail = SimpleNamespace(wait=wait, read=lambda *_: [], end=lambda *_: 7)
    log._appended = {}
    assert log.read("other", 0, 0) == [] and log.end("other", 0) == 7
    with pytest.raises(LogTruncated):
        log.wait("t", 0.1)
    calls = (log.read, ("other", 0, 0)), (log.end, ("other", 0)), (log.hold, ("n", "other", 0, 0))
    for call, arguments in calls:
        with pytest.raises(LogTruncated):
            call(*arguments)
