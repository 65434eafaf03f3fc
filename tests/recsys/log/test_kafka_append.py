"""Appends to Kafka that fail."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

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
    log._appended, log._partitions = {}, {"t": 2}
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
