"""The parser of Kafka's batches, beside kafka-python's own and on damaged ones."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.errors import CorruptRecordError, NotLeaderForPartitionError
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from recsys.log.kafka_fetch import Ends, PartitionRecords, ends_after, records_of
from recsys.log.kafka_topics import KafkaTopics
from recsys.log.protocol import Brokers, Record

CODECS = {"none": 0, "gzip": 1, "zstd": 4}
Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]
optional = st.none() | st.binary(max_size=300)
headers = st.lists(st.tuples(st.text(max_size=5), optional), max_size=2)
rows = st.lists(st.tuples(st.integers(0, 1 << 42), optional, optional, headers), min_size=1, max_size=20)


def batch_of(rows: list[Row], codec: str = "none", gap: int = 1) -> bytearray:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=CODECS[codec], is_transactional=0, producer_id=-1,
        producer_epoch=-1, base_sequence=-1, batch_size=1 << 20,
    )  # fmt: skip
    for number, (time_ms, key, value, fields) in enumerate(rows):
        builder.append(number * gap, time_ms, key, value, fields)
    built: bytearray = builder.build()
    return built


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from(sorted(CODECS)), st.integers(1, 200))
def test_records_are_those_that_kafka_python_reads(rows: list[Row], codec: str, gap: int) -> None:
    data = batch_of(rows, codec, gap)
    theirs = [Record(r.offset, r.key or b"", r.value or b"") for r in DefaultRecordBatch(data)]
    assert records_of(DefaultRecordBatch(data)) == theirs
    middle = theirs[len(theirs) // 2].offset
    later = [record for record in theirs if record.offset >= middle]
    assert records_of(DefaultRecordBatch(data), middle) == later


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_batch_that_ends_within_a_record_is_refused(cut: int) -> None:
    data = batch_of([(0, b"key", b"value" * 10, [])] * 3)
    with pytest.raises(CorruptRecordError):
        records_of(DefaultRecordBatch(data[:-cut]))


def test_a_length_beyond_its_record_is_refused() -> None:
    data = batch_of([(0, b"key", b"value", [])])
    at = data.index(b"value") - 1
    data[at] = 2 * 60  # zigzag
    with pytest.raises(CorruptRecordError, match="record at 0"):
        records_of(DefaultRecordBatch(data))


def fetch(data: bytes, offset: int, check: bool = True) -> Any:
    return PartitionRecords(offset, "t/0", MemoryRecords(data), check_crcs=check)


def test_a_fetch_gives_the_records_of_all_its_batches_from_its_offset_on() -> None:
    first, second = (batch_of([(0, b"k", b"%d" % n, []) for n in range(4)]), batch_of([(0, b"k", b"4", [])]))
    second[:8] = (9).to_bytes(8, "big")
    part = fetch(bytes(first + second), 2)
    assert [record.value for record in part.take(1)] == [b"2"]
    assert part.next_fetch_offset == 3
    assert [(record.offset, record.value) for record in part.take(10)] == [(3, b"3"), (9, b"4")]
    assert part.next_fetch_offset == 10 and not part


def test_a_flipped_bit_is_noticed() -> None:
    data = batch_of([(0, b"key", b"value", [])])
    data[-3] ^= 1
    with pytest.raises(CorruptRecordError, match="damaged"):
        fetch(bytes(data), 0).take(1)


def test_a_damaged_batch_ends_the_fetch_of_its_partition() -> None:
    """The consumer fetches it again; where the rest of a fetch stays, kafka-python waits for it for ever."""
    good, damaged = batch_of([(0, b"k", b"0", [])]), batch_of([(0, b"k", b"1", [])])
    damaged[:8] = (1).to_bytes(8, "big")
    damaged[-3] ^= 1
    part = fetch(bytes(good + damaged), 0)
    assert [record.value for record in part.take(1)] == [b"0"]
    with pytest.raises(CorruptRecordError, match="the batch at 1 is damaged"):
        part.take(1)
    assert not part and part.next_fetch_offset == 1


def test_sizes_that_go_backwards_or_never_end_are_refused() -> None:
    """Before the wanted offset, too, where a record is only skipped over."""
    data = batch_of([(0, b"key", b"value", [])])
    body = DefaultRecordBatch(data)._pos
    back = data[:body] + bytearray([3]) + data[body + 1 :]  # a size of -2
    back[body - 4 : body] = (1 << 30).to_bytes(4, "big")  # so many records
    with pytest.raises(CorruptRecordError, match="-2 bytes"):
        records_of(DefaultRecordBatch(back), 5)
    endless = data[:body] + bytearray([255]) * 300_000 + bytearray([1])
    with pytest.raises(CorruptRecordError, match="bytes"):
        records_of(DefaultRecordBatch(endless))


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_batch_that_decompresses_to_too_much_is_refused(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batch_of([(0, b"key", bytes(1 << 20), [])], codec)
    assert len(data) < 5_000 and len(records_of(DefaultRecordBatch(data))[0].value) == 1 << 20
    monkeypatch.setattr("recsys.log.kafka_fetch._MOST_BYTES", 1 << 18)
    with pytest.raises(CorruptRecordError, match="more than 262144 bytes"):
        records_of(DefaultRecordBatch(data))


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_a_damaged_compressed_batch_is_refused(codec: str) -> None:
    data = batch_of([(0, b"key", b"value" * 100, [])], codec)
    with pytest.raises(CorruptRecordError, match="is no gzip or zstd"):
        records_of(DefaultRecordBatch(data[:61] + b"\x00" * 20 + data[81:]))


class Leaders:
    """An admin client of partitions led by two brokers; ``ends`` and error codes by partition."""

    def __init__(self, ends: dict[int, int], errors: dict[int, int] | None = None) -> None:
        self.ends, self._errors = ends, errors or {}
        self.fetched: dict[tuple[int, int], int] = {}
        self._manager = self

    async def _async_get_leader_for_partitions(
        self, ats: set[TopicPartition]
    ) -> dict[int, set[TopicPartition]]:
        return {leader: {at for at in ats if at.partition % 2 == leader} for leader in (0, 1)}

    async def send(self, request: Any, leader: int) -> Any:
        parts = request.topics[0].partitions
        self.fetched |= {(leader, part.partition): part.fetch_offset for part in parts}
        answers = [
            SimpleNamespace(
                partition_index=part.partition,
                high_watermark=self.ends[part.partition],
                error_code=self._errors.get(part.partition, 0),
            )
            for part in parts
        ]
        return SimpleNamespace(responses=[SimpleNamespace(partitions=answers)])

    def list_partition_offsets(self, ats: dict[TopicPartition, Any]) -> dict[TopicPartition, Any]:
        return {at: SimpleNamespace(offset=5) for at in ats}

    def run(self, call: Callable[..., Any], *args: object) -> Any:
        return asyncio.run(call(*args))


def ends_of(leaders: Any, listed: dict[int, int], known: Ends) -> dict[int, int]:
    return asyncio.run(ends_after(leaders, "t", listed, known))


def test_ends_are_those_of_a_fetch_of_the_last_batch() -> None:
    leaders: Any = Leaders({0: 0, 1: 9, 2: 7})
    assert ends_of(leaders, {0: 0, 1: 5, 2: 7}, {}) == {0: 0, 1: 9, 2: 7}
    assert leaders.fetched == {(1, 1): 4, (0, 2): 6}  # none of an empty partition


def test_a_last_batch_is_fetched_once() -> None:
    leaders: Any = Leaders({0: 9, 1: 7})
    known: Ends = {("other", 0): {5: 8}}
    assert ends_of(leaders, {0: 5, 1: 7}, known) == {0: 9, 1: 7}
    leaders.fetched.clear()
    assert ends_of(leaders, {0: 5, 1: 7}, known) == {0: 9, 1: 7}
    assert leaders.fetched == {}
    leaders.ends = {0: 12, 1: 7}
    assert ends_of(leaders, {0: 10, 1: 7}, known) == {0: 12, 1: 7}
    assert leaders.fetched == {(0, 0): 9}  # not the unchanged one
    assert ends_of(leaders, {0: 0, 1: 3}, known) == {0: 0, 1: 7}  # made again
    assert known["t", 1] == {3: 7}  # nothing of before is kept


def test_a_log_keeps_the_ends_that_it_fetched() -> None:
    leaders: Any = Leaders({0: 9})
    topics = KafkaTopics(leaders, Brokers("kafka://b:1"), 1.0)
    assert topics.bounds("t", [0], begins=False) == {0: 9}
    leaders.fetched.clear()
    assert topics.bounds("t", [0], begins=False) == {0: 9} and leaders.fetched == {}


def test_a_partition_that_retention_emptied_ends_where_it_is_listed() -> None:
    leaders: Any = Leaders({0: -1}, {0: 1})
    known: Ends = {}
    assert [ends_of(leaders, {0: 5}, known), known] == [{0: 5}, {("t", 0): {5: 5}}]


def test_a_broker_that_refuses_the_fetch_gives_no_end() -> None:
    leaders: Any = Leaders({0: -1}, {0: 6})
    known: Ends = {}
    with pytest.raises(NotLeaderForPartitionError, match="t/0"):
        ends_of(leaders, {0: 5}, known)
    assert known == {}
