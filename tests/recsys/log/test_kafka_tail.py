"""The consumer that follows ends: how long its fetch stays open at the broker."""

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from recsys.log import kafka_tail
from recsys.log.kafka_tail import BUSY_MS, OPEN_MS, RECENT_S, KafkaTail
from recsys.log.protocol import Record


class FakeConsumer:
    """A consumer whose next polls return ``batches``, and that notes how long each may wait."""

    def __init__(self) -> None:
        self.batches: list[dict[TopicPartition, list[Record]]] = []
        self.waits_ms: list[int] = []
        self._fetcher = SimpleNamespace(config={})

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Record]]:
        self.waits_ms.append(self._fetcher.config["fetch_max_wait_ms"])
        return self.batches.pop(0) if self.batches else {}

    def assign(self, partitions: Any) -> None: ...

    def seek(self, partition: Any, offset: int) -> None: ...


def test_a_fetch_is_short_while_records_arrive_and_long_at_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumer, now_s = FakeConsumer(), 100.0
    monkeypatch.setattr(kafka_tail, "consumer_of", lambda *_, **__: consumer)
    monkeypatch.setattr("recsys.log.kafka_tail.time.monotonic", lambda: now_s)
    tail, at = KafkaTail({}), TopicPartition("t", 0)
    tail.follow("t", 0, 0)
    consumer.batches = [{}, {at: [Record(0, b"", b"a")]}]
    for offset, passed_s in ((0, 0.1), (0, 0.1), (1, RECENT_S - 0.15), (1, RECENT_S), (1, 1.0)):
        now_s += passed_s
        tail.read("t", 0, offset, 10)
    assert consumer.waits_ms == [OPEN_MS, OPEN_MS, BUSY_MS, OPEN_MS, OPEN_MS]
