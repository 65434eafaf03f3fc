"""Records of Kafka's fetches: a parser of its batches (format 2), and a fetch of single records.

kafka-python makes four objects and seven calls for a record, which costs twice as much as all of a read here
(docs/decisions/libraries.md). Transactions, headers and times aren't used.
"""

import gzip
import zlib
from collections.abc import Collection, Iterator, Mapping
from io import BytesIO
from typing import Any, Final

from kafka import KafkaAdminClient, TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, OffsetOutOfRangeError, for_code
from kafka.protocol.consumer import FetchRequest
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatch
from zstandard import ZstdDecompressor, ZstdError

from recsys.log.protocol import Record

_FETCH_BYTES: Final = 64 << 10  # of single records; the first batch comes whole
_WAIT_MS: Final = 10  # the embedded broker answers 0 with nothing
_MOST_BYTES: Final = 64 << 20  # of a batch, decompressed: four times the largest record
Ends = dict[tuple[str, int], dict[int, int]]  # by topic and partition: the listed end → the end


class PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of one partition in a consumer's fetch, as ``Record``."""

    def _unpack_records(self, tp: Any, records: Any, *_: object) -> Iterator[Record]:
        try:
            while (batch := records.next_batch()) is not None:
                if self.check_crcs and not batch.validate_crc():
                    raise CorruptRecordError(f"{tp}: the batch at {batch.base_offset} is damaged")
                self.leader_epoch = batch.leader_epoch
                for record in records_of(batch, self.fetch_offset):
                    self.next_fetch_offset = record.offset + 1
                    yield record
                self.next_fetch_offset = batch.next_offset
        except Exception:
            self.drain()  # else kafka-python would ask for the rest of it without end
            raise
        self.drain()


async def fetch_each(
    admin: KafkaAdminClient, topic: str, offsets: Mapping[int, Collection[int]]
) -> dict[tuple[int, int], Record]:
    """Records at some offsets, by partition. One request reads an offset, and others that follow it closely.
    Records that aren't in the answers are left out. Raises KafkaError."""
    fetched: dict[tuple[int, int], Record] = {}
    ats = {TopicPartition(topic, partition) for partition in offsets}
    for leader, led in (await admin._async_get_leader_for_partitions(ats)).items():
        for partition, rest in ((at.partition, sorted(offsets[at.partition])) for at in led):
            while rest:
                request = _request(topic, {partition: rest[0]}, _FETCH_BYTES)
                answer = await admin._manager.send(request, leader)
                last = rest[0]  # an offset is asked for once, whatever the answer
                for part in (part for each in answer.responses for part in each.partitions):
                    for batch in MemoryRecords(part.records or b""):
                        is_wanted = any(batch.base_offset <= o <= batch.last_offset for o in rest)
                        if is_wanted and batch.validate_crc():
                            records = {record.offset: record for record in records_of(batch)}
                            fetched |= {(partition, o): records[o] for o in rest if o in records}
                        last = max(last, batch.last_offset)
                rest = [offset for offset in rest if offset > last]
    return fetched


async def ends_after(
    admin: KafkaAdminClient, topic: str, listed: Mapping[int, int], cache: Ends
) -> dict[int, int]:
    """The ends of partitions, given those that the brokers list: the embedded one lists the offset after the
    *first* record of the last batch. A fetch of that batch has the end; ``cache`` holds it while the same is
    listed. Raises KafkaError."""
    cached = {p: cache.get((topic, p), {}) for p in listed}
    ends = {p: cached[p].get(end, end) for p, end in listed.items()}
    changed = {TopicPartition(topic, p) for p, end in listed.items() if end and end not in cached[p]}
    if not changed:
        return ends
    for leader, led in (await admin._async_get_leader_for_partitions(changed)).items():
        request = _request(topic, {at.partition: ends[at.partition] - 1 for at in led}, 1)
        answer = await admin._manager.send(request, leader)
        for part in (part for each in answer.responses for part in each.partitions):
            p, code = part.partition_index, part.error_code
            if code not in (0, OffsetOutOfRangeError.errno):  # that one: retention emptied it
                raise for_code(code)(f"{topic}/{p}")
            ends[p] = max(ends[p], part.high_watermark)
            cache[topic, p] = {listed[p]: ends[p]}
    return ends


def _request(topic: str, offsets: Mapping[int, int], size: int) -> FetchRequest:
    """A fetch from an offset of each partition on, outside any session."""
    parts = [
        FetchRequest.FetchTopic.FetchPartition(
            partition=partition, current_leader_epoch=-1, fetch_offset=offset, last_fetched_epoch=-1,
            partition_max_bytes=size,
        )
        for partition, offset in offsets.items()
    ]  # fmt: skip
    return FetchRequest(
        max_wait_ms=_WAIT_MS, min_bytes=1, max_bytes=_FETCH_BYTES, isolation_level=0,
        session_id=0, session_epoch=-1, forgotten_topics_data=[], rack_id="",
        topics=[FetchRequest.FetchTopic(topic=topic, partitions=parts)],
        min_version=4, max_version=12,
    )  # fmt: skip


def records_of(batch: DefaultRecordBatch, first: int = 0) -> list[Record]:
    """Records of a batch with offsets at or after ``first``; none of a control batch. Raises
    CorruptRecordError if lengths don't fit."""
    if batch.is_control_batch:
        return []
    data, at, base = _decompressed(batch), 0, batch.base_offset
    records = []
    try:
        for _ in range(batch.records_count):
            size, at = _varint(data, at)
            end = at + size
            if not at < end <= len(data):
                raise CorruptRecordError(f"a record of the batch at {base} has {size} bytes")
            at += 2  # attributes, and the first byte of the time
            while data[at - 1] > 127:
                at += 1
            delta, at = _varint(data, at)
            if base + delta >= first:
                length, at = _varint(data, at)
                key_end = at + max(length, 0)  # -1 for none
                length, begin = _varint(data, key_end)
                value_end = begin + max(length, 0)
                if value_end >= end:  # a number of headers follows
                    raise CorruptRecordError(f"lengths of the record at {base + delta} don't fit")
                records.append(Record(base + delta, data[at:key_end], data[begin:value_end]))
            at = end
    except IndexError as error:
        raise CorruptRecordError(f"the batch at {base} ends within a record") from error
    return records


def _decompressed(batch: DefaultRecordBatch) -> bytes:
    """The records of a batch. Raises CorruptRecordError beyond ``_MOST_BYTES``: kafka-python has no limit."""
    packed, plain = memoryview(batch._buffer)[batch._pos :], bytearray()
    if batch.compression_type == batch.CODEC_NONE:
        return bytes(packed)
    try:
        with (
            ZstdDecompressor().stream_reader(packed, read_across_frames=True)
            if batch.compression_type == batch.CODEC_ZSTD
            else gzip.GzipFile(fileobj=BytesIO(packed))
        ) as reader:
            while len(plain) <= _MOST_BYTES and (piece := reader.read(128 << 10)):
                plain += piece
    except (OSError, EOFError, zlib.error, ZstdError) as error:
        raise CorruptRecordError(f"the batch is no gzip or zstd: {error}") from error
    if len(plain) > _MOST_BYTES:
        raise CorruptRecordError(f"batch {batch.base_offset} has more than {_MOST_BYTES} bytes")
    return bytes(plain)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length in zigzag coding, and the position after it."""
    byte = data[at]
    number, shift = byte & 127, 7
    while byte > 127 and shift < 70:  # ten bytes at most; what is left over fits nothing
        at += 1
        byte = data[at]
        number |= (byte & 127) << shift
        shift += 7
    return (number >> 1) ^ -(number & 1), at + 1
