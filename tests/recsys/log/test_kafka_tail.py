"""The consumer that follows ends: how long its fetch stays open at the broker, and what a poll brings."""

from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import LogTruncationError

from recsys.log import kafka_tail
from recsys.log.kafka_tail import BUSY_MS, NEWER_MS, OPEN_MS, PACE_S, RECENT_S, STALE_S, KafkaTail
from recsys.log.protocol import LogLost, Record


class FakeConsumer:
    """A consumer whose next polls return ``batches``, and that notes how long a poll and its fetch may wait.
    ``is_open``: whether a fetch is at the broker."""

    def __init__(self) -> None:
        self.batches: list[dict[TopicPartition, list[Record]]] = []
        self.waits_ms: list[int] = []
        self.polls_ms: list[int] = []
        self.is_open = False
        self._fetcher = SimpleNamespace(
            config={}, _completed_fetches=[], in_flight_fetches=lambda: self.is_open
        )

    def poll(self, timeout_ms: int) -> dict[TopicPartition, list[Record]]:
        self.polls_ms.append(timeout_ms)
        self.waits_ms.append(self._fetcher.config["fetch_max_wait_ms"])
        self._fetcher._completed_fetches.clear()
        return self.batches.pop(0) if self.batches else {}

    def assign(self, partitions: Any) -> None: ...

    def seek(self, partition: Any, offset: int) -> None: ...


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> FakeConsumer:
    """The consumer of the next tail."""
    consumer = FakeConsumer()
    monkeypatch.setattr(kafka_tail, "consumer_of", lambda *_, **__: consumer)
    return consumer


@pytest.fixture
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of tails, whose clock stands still."""
    slept_s: list[float] = []
    monkeypatch.setattr("recsys.log.kafka_tail.time.monotonic", lambda: 100.0)
    monkeypatch.setattr("recsys.log.kafka_tail.time.sleep", slept_s.append)
    return slept_s


def test_a_fetch_is_short_while_records_arrive_and_long_at_rest(
    consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("recsys.log.kafka_tail.time.monotonic", lambda: now_s)
    tail, at = KafkaTail({}), TopicPartition("t", 0)
    tail.follow("t", 0, 0)
    consumer.batches = [{}, {at: [Record(0, b"", b"a")]}]
    for offset, passed_s in ((0, 0.1), (0, 0.1), (1, RECENT_S - 0.15), (1, RECENT_S), (1, 1.0)):
        now_s += passed_s
        tail.read("t", 0, offset, 10)
    assert consumer.waits_ms == [OPEN_MS, OPEN_MS, BUSY_MS, OPEN_MS, OPEN_MS]


def test_records_of_an_old_fetch_are_read_with_those_that_have_come_since(consumer: FakeConsumer) -> None:
    at = TopicPartition("t", 0)
    tail = KafkaTail({})
    tail.follow("t", 0, 0)
    old, newer = Record(0, b"", b"a"), Record(1, b"", b"b")
    consumer.batches = [{at: [old]}, {at: [newer]}]
    consumer._fetcher._completed_fetches.append(object())
    assert tail.read("t", 0, 0, 10) == [old, newer]
    assert consumer.polls_ms == [0, NEWER_MS]


def test_after_a_long_pause_the_last_answer_is_no_end(
    consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("recsys.log.kafka_tail.time.monotonic", lambda: now_s)
    tail, record = KafkaTail({}), Record(0, b"", b"a")
    tail.follow("t", 0, 0)
    now_s += STALE_S
    assert tail.read("t", 0, 0, 10) == []
    consumer.batches = [{TopicPartition("t", 0): [record]}]
    tail.wait("t", 0.0)
    now_s += 1.1 * STALE_S
    assert tail.read("t", 0, 0, 10) == [record]  # of before the pause
    polls = len(consumer.polls_ms)
    assert tail.read("t", 0, 1, 10) is None and len(consumer.polls_ms) == polls
    tail.follow("t", 0, 1)
    assert tail.read("t", 0, 1, 10) == []


def test_a_truncated_log_is_lost(consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
    def poll(timeout_ms: int) -> None:
        raise LogTruncationError({TopicPartition("t", 0): 4})

    monkeypatch.setattr(consumer, "poll", poll)
    tail = KafkaTail({})
    tail.follow("t", 0, 5)
    with pytest.raises(LogLost, match="lost records that were read already"):
        tail.wait("t", 0.1)


def test_a_wait_pauses_only_where_no_fetch_is_sent(consumer: FakeConsumer, slept_s: list[float]) -> None:
    tail = KafkaTail({})
    tail.follow("t", 0, 0)
    tail.wait("t", 0.5)
    tail.wait("t", 0.5)
    consumer.is_open = True
    tail.wait("t", 0.5)
    consumer.is_open = False
    consumer._fetcher._completed_fetches.append(object())
    tail.wait("t", 0.5)
    assert slept_s == [0.0, pytest.approx(PACE_S), 0.0, 0.0]
    assert consumer.polls_ms == [500, 480, 500, 500]


def test_an_open_fetch_of_another_broker_lets_no_wait_pass_its_pause(
    consumer: FakeConsumer, slept_s: list[float]
) -> None:
    at = TopicPartition("t", 0)
    tail = KafkaTail({})
    tail.follow("t", 0, 0)
    consumer.is_open = True
    for offset in range(3):
        consumer.batches = [{at: [Record(offset, b"", b"a")]}]
        tail.wait("t", 0.5)
        tail.read("t", 0, offset, 10)
    assert slept_s == [0.0, pytest.approx(PACE_S), pytest.approx(PACE_S)]
