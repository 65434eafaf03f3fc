"""CRC-32C of log records: one flipped bit is always detected, and can be located and corrected."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from struct import Struct
from struct import error as NotPackable
from typing import Final

from crc32c import crc32c

from recsys.log.protocol import Record

_HEAD: Final = Struct("<qqqq")
_pack: Final = _HEAD.pack
# ``Record._make`` without a Python call per record.
_record: Final[Callable[[tuple[int, bytes, bytes]], Record]] = partial(tuple.__new__, Record)
_POLYNOMIAL: Final = 0x82F63B78  # CRC-32C, reflected


def record_crc(partition: int, offset: int, time_ms: int, key: bytes = b"", value: bytes = b"") -> int:
    """Checksum of a record with its place and time."""
    return crc32c(value, crc32c(_pack(partition, offset, time_ms, len(key)) + key))


def row_crc(*values: object) -> int:
    """Checksum of a row of a small table."""
    return crc32c(repr(values).encode())


def is_intact(crc: int, partition: int, offset: int, time_ms: int, key: bytes, value: bytes) -> bool:
    """Whether a record has its checksum."""
    try:
        return record_crc(partition, offset, time_ms, key, value) == crc
    except (TypeError, NotPackable):  # the flip changed a type
        return False


def intact_records(
    partition: int, offset: int, rows: Iterable[tuple[int, bytes, bytes, int, int]]
) -> list[Record]:
    """Records of rows (offset, key, value, time, checksum) from ``offset`` on, without a gap, up to the first
    that isn't intact. Inline, since it runs for each record that is read."""
    records: list[Record] = []
    with suppress(TypeError, NotPackable):
        for at, key, value, time_ms, crc in rows:
            if at != offset:
                break
            head = crc32c(_pack(partition, at, time_ms, len(key)) + key)
            if crc32c(value, head) != crc:
                break
            records.append(_record((at, key, value)))
            offset += 1
    return records


def corrected(
    crc: int, partition: int, offset: int, time_ms: int, key: bytes, value: bytes
) -> tuple[int, int, int, bytes, bytes] | None:
    """The record before one of its bits flipped; None if more than a bit differs."""
    try:
        data = bytearray(_HEAD.pack(partition, offset, time_ms, len(key)) + key + value)
    except (TypeError, NotPackable):
        return None
    difference = crc32c(data) ^ crc
    if difference.bit_count() > 1:  # else the checksum itself is the one that flipped, or nothing
        bit = _position(difference, 8 * len(data))
        if bit is None:
            return None
        data[bit // 8] ^= 1 << bit % 8
    partition, offset, time_ms, size = _HEAD.unpack_from(data)
    body = bytes(data[_HEAD.size :])
    return (partition, offset, time_ms, body[:size], body[size:]) if size == len(key) else None


def _position(difference: int, bits: int) -> int | None:
    """Position of the bit whose flip changes the checksum of so many bits by ``difference``."""
    effect = _POLYNOMIAL  # of the last bit; each before it is shifted once more
    for bit in reversed(range(bits)):
        if effect == difference:
            return bit
        effect = (effect >> 1) ^ (_POLYNOMIAL if effect & 1 else 0)
    return None
