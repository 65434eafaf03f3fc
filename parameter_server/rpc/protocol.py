"""Messages between workers and shards: a MessagePack header and raw arrays.

    [header length u32][body length u64][header][body]

The header has the kind and shape of each array; the body holds them in order, little-endian, each padded to 8
bytes. Sizes are checked before anything is allocated.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from parameter_server.shard.lanes import LaneGradients, RowGradients

HEAD: Final = struct.Struct("<IQ")
MAX_HEADER: Final = 1 << 20
MAX_BODY: Final = 1 << 31
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"k": np.dtype("<i8"), "f": np.dtype("<f4"), "c": np.dtype("<i4")}

Array = NDArray[Any]


class ProtocolError(ValueError):
    """Unreadable message: the peer is broken, hostile, or of another version."""


class ArrayPart(msgspec.Struct, frozen=True, array_like=True):
    """Kind (k int64, f float32, c int32) and shape of one array of the body."""

    kind: str
    shape: list[int]


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a connection. Only the newest generation of workers is served."""

    token: str
    line: str
    epoch: int
    part: int
    parts: int
    lanes: int
    worker: int
    workers: int
    generation: int


class AppliedQuery(msgspec.Struct, frozen=True, tag="where"):
    """Request for the applied step."""


class CommonStepQuery(msgspec.Struct, frozen=True, tag="common"):
    """Request for the step of the newest complete, intact snapshot."""


class Rewind(msgspec.Struct, frozen=True, tag="rewind"):
    """Request to return to the complete snapshot at ``step``."""

    generation: int
    step: int


class LookupQuery(msgspec.Struct, frozen=True, tag="lookup"):
    """Request for rows after ``step``. Arrays: keys by table."""

    step: int
    tables: list[str]


class LaneHead(msgspec.Struct, frozen=True, array_like=True):
    """One lane. Arrays: (keys, gradients, counts) by table, keys to forget by table, dense gradient."""

    lane: int
    tables: list[str]
    forget: list[str]
    dense: bool
    metrics: dict[str, float]
    rate: float = 1.0


class Exchange(msgspec.Struct, frozen=True, tag="exchange"):
    """Lanes of ``step`` and request for rows after it. Arrays: those of the lanes, then keys by table."""

    generation: int
    step: int
    time_ms: int
    lanes: list[LaneHead]
    next: list[str] | None


class Reply(msgspec.Struct, frozen=True, tag="answer"):
    """Reply. Arrays: rows by table, then the dense parameters if any."""

    applied: int
    tables: list[str] = []
    dense: bool = False


class Refusal(msgspec.Struct, frozen=True, tag="refusal"):
    """Error reply. ``kind``: mismatch (of steps), stale (generation), hello, invalid, or failed (retry)."""

    kind: str
    text: str
    asked: int = 0
    applied: int = 0


AnyMessage = Hello | AppliedQuery | CommonStepQuery | Rewind | LookupQuery | Exchange | Reply | Refusal


class _Header(msgspec.Struct, frozen=True, array_like=True):
    message: AnyMessage
    parts: list[ArrayPart]


class Frame(NamedTuple):
    """A message with its arrays."""

    message: AnyMessage
    arrays: Sequence[Array] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)
_hello_decoder = msgspec.msgpack.Decoder(tuple[Hello, tuple[()]])
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(frame: Frame) -> list[bytes | memoryview]:
    """Buffers of a message, to be sent in order; arrays aren't copied."""
    parts, body, size = [], [], 0
    for array in frame.arrays:
        kind = "k" if array.dtype == np.int64 else "c" if array.dtype == np.int32 else "f"
        data = np.ascontiguousarray(array, _DTYPES[kind])
        parts.append(ArrayPart(kind, list(data.shape)))
        if data.nbytes:
            body.append(data.reshape(-1).view(np.uint8).data)
            padding = -data.nbytes % 8
            if padding:
                body.append(memoryview(bytes(padding)))
            size += data.nbytes + padding
    header = _encoder.encode(_Header(frame.message, parts))
    return [HEAD.pack(len(header), size) + header, *body]


def sizes(head: bytes, max_header: int = MAX_HEADER, max_body: int = MAX_BODY) -> tuple[int, int]:
    """Lengths of header and body from a message's head; raises ProtocolError beyond the limits."""
    header, body = HEAD.unpack(head)
    if header > max_header or body > max_body:
        raise ProtocolError(
            f"a message announces {header} + {body} bytes, expected at most {max_header} + {max_body}"
        )
    return header, body


def decode_hello(header: bytes | memoryview) -> Hello:
    """Decodes a hello without arrays, and no other message. Raises ProtocolError."""
    try:
        return _hello_decoder.decode(header)[0]
    except _UNREADABLE as error:
        raise ProtocolError(f"the hello of a connection can't be read: {error}") from None


def decode(header: bytes | memoryview, body: bytearray | memoryview | bytes) -> Frame:
    """Decodes a message; its arrays are views of ``body``. Raises ProtocolError."""
    try:
        head = _decoder.decode(header)
    except _UNREADABLE as error:
        raise ProtocolError(f"the header of a message can't be read: {error}") from None
    arrays, at = [], 0
    for part in head.parts:
        dtype = _DTYPES.get(part.kind)
        if dtype is None or len(part.shape) not in (1, 2) or any(n < 0 for n in part.shape):
            raise ProtocolError(f"array {part} has an unknown kind or shape")
        count, rows = math.prod(part.shape), part.shape[0]
        # Rows without columns take no bytes, but are limited as if they did; so are columns without rows.
        if at + max(count, rows) * dtype.itemsize > len(body) or max(part.shape) > MAX_BODY:
            raise ProtocolError(f"array {part} goes beyond the {len(body)} bytes of its message")
        arrays.append(np.frombuffer(body, dtype, count, at).reshape(part.shape))
        at += count * dtype.itemsize + (-count * dtype.itemsize) % 8
    if at != len(body):
        raise ProtocolError(f"a message has {len(body)} bytes of arrays, its header says {at}")
    return Frame(head.message, arrays)


def exchange_frame(
    generation: int, step: int, time_ms: int, lanes: Sequence[LaneGradients],
    next_keys: Mapping[str, NDArray[np.int64]] | None,
) -> Frame:  # fmt: skip
    """Message of one step to one shard."""
    heads: list[LaneHead] = []
    arrays: list[Array] = []
    for lane in lanes:
        names = list(lane.tables), list(lane.forget), lane.dense is not None
        heads.append(LaneHead(lane.lane, *names, dict(lane.metrics), lane.rate))
        for rows in lane.tables.values():
            arrays += [rows.keys, rows.gradients, np.asarray(rows.counts, np.int32)]
        arrays += lane.forget.values()
        if lane.dense is not None:
            arrays.append(lane.dense)
    arrays += (next_keys or {}).values()
    tables = None if next_keys is None else list(next_keys)
    return Frame(Exchange(generation, step, time_ms, heads, tables), arrays)


def read_exchange(frame: Frame) -> tuple[list[LaneGradients], dict[str, Array] | None]:
    """Lanes and next keys of an ``Exchange``. Raises ProtocolError if arrays are missing or left over."""
    message = frame.message
    assert isinstance(message, Exchange)
    left = iter(frame.arrays)
    try:
        lanes = []
        for head in message.lanes:
            tables = {n: RowGradients(next(left), next(left), next(left)) for n in head.tables}
            forget = {name: next(left) for name in head.forget}
            dense = next(left) if head.dense else None
            about = head.metrics, forget, head.rate
            lanes.append(LaneGradients(head.lane, tables, dense, *about))
        keys = None if message.next is None else {name: next(left) for name in message.next}
    except StopIteration:
        raise ProtocolError("an exchange has fewer arrays than its lanes and keys need") from None
    if next(left, None) is not None:
        raise ProtocolError("an exchange has more arrays than its lanes and keys need")
    for array in (*(keys or {}).values(), *_key_arrays(lanes)):
        if array.dtype != np.int64 or array.ndim != 1:
            raise ProtocolError(f"keys are {array.dtype} {array.shape}, expected int64 (N,)")
    return lanes, keys


def _key_arrays(lanes: Sequence[LaneGradients]) -> list[Array]:
    learned = [rows.keys for lane in lanes for rows in lane.tables.values()]
    return learned + [keys for lane in lanes for keys in lane.forget.values()]
