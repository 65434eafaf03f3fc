"""The reader of one topic: what it asks the brokers for, and when."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import OffsetOutOfRangeError

from recsys.log import kafka_reader
from recsys.log.kafka_reader import KafkaReader
from recsys.log.protocol import LogLost, Record

FIFTH = Record(5, b"", b"")


class Brokers:
    """Bounds of a topic's partitions, with the requests for them, and a consumer that gets no record."""

    def __init__(self, ends: dict[int, int], begin: int = 0) -> None:
        self.ends, self.begin, self.requests = ends, begin, list[tuple[list[int], bool]]()
        self.consumer = SimpleNamespace(
            poll=lambda timeout_ms: {}, assign=lambda at: None, seek=lambda at, offset: None
        )

    def listed(self, topic: str, partitions: list[int], begins: bool) -> dict[int, int]:
        self.requests.append((partitions, begins))
        return {partition: self.begin if begins else self.ends[partition] for partition in partitions}


def reader_of(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> KafkaReader:
    monkeypatch.setattr(kafka_reader, "consumer_of", lambda *_, **__: brokers.consumer)
    monkeypatch.setattr(kafka_reader, "time", SimpleNamespace(monotonic=lambda: 100.0))
    return KafkaReader({}, "t", 1.0, brokers.listed)


def test_bounds_of_all_partitions_take_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers({0: 5, 1: 7})
    reader: Any = reader_of(brokers, monkeypatch)
    assert [reader.end(0), reader.end(1)] == [5, 7]  # partitions become known one by one
    reader.forget_ends()
    brokers.requests.clear()
    brokers.ends = {0: 6, 1: 8}
    assert [reader.end(0), reader.end(1), reader.end(0)] == [6, 8, 6]
    assert brokers.requests == [([0, 1], False)]


def test_an_end_from_before_an_append_loses_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers({0: 5})
    reader = reader_of(brokers, monkeypatch)
    assert reader.end(0) == 5
    brokers.ends = {0: 6}  # appended by another client, and read by this one
    assert reader.read(0, 6, 10) == []
    with pytest.raises(LogLost, match="beyond the end, 6"):
        reader.read(0, 7, 10)


def test_an_end_from_before_a_read_hides_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers, at = Brokers({0: 5, 1: 7}), TopicPartition("t", 0)
    reader = reader_of(brokers, monkeypatch)
    now_s, polled = itertools.count(100.0, 0.001), [{}, {at: [FIFTH]}]
    monkeypatch.setattr(kafka_reader, "time", SimpleNamespace(monotonic=lambda: next(now_s)))
    assert reader.end(1) == 7 and reader.end(0) == 5
    brokers.ends[0] = 6
    brokers.consumer.poll = lambda timeout_ms: polled.pop(0)
    assert reader.read(0, 5, 10) == [FIFTH]


def test_an_offset_that_retention_passed_is_lost_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers, polls = Brokers({0: 9}, begin=5), list[int]()

    def poll(timeout_ms: int) -> None:
        polls.append(timeout_ms)
        assert len(polls) == 1, "waits for a record that is gone"
        raise OffsetOutOfRangeError

    brokers.consumer.poll = poll
    with pytest.raises(LogLost, match="offset 2 is gone, the log begins at 5"):
        reader_of(brokers, monkeypatch).read(0, 2, 10)


def test_the_beginning_is_asked_for_only_when_sought(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers, at = Brokers({0: 9}, begin=5), TopicPartition("t", 0)
    fifth, sixth = ({at: [Record(offset, b"", b"")]} for offset in (5, 6))
    answers = [fifth, {}, sixth, {}, fifth]
    brokers.consumer.poll = lambda timeout_ms: answers.pop(0)
    reader = reader_of(brokers, monkeypatch)
    assert [reader.read(0, offset, 10)[0].offset for offset in (5, 6)] == [5, 6]
    assert brokers.requests == [([0], False)]
    assert reader.read(0, 5, 10)[0].offset == 5
    assert brokers.requests[1:] == [([0], True)]
