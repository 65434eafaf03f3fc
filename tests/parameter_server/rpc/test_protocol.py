import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parameter_server.rpc.protocol import (
    HEAD,
    MAX_BODY,
    AppliedQuery,
    Exchange,
    Frame,
    Hello,
    LaneHead,
    LookupQuery,
    ProtocolError,
    Reply,
    decode,
    decode_hello,
    encode,
    exchange_frame,
    read_exchange,
    sizes,
)
from parameter_server.shard.lanes import LaneGradients
from tests.support.parameter_server.small_line import DENSE, TABLES, keys_of, lane_of

DIMS = {t.name: t.dim for t in TABLES}


def lanes():
    forget = {"items": np.array([7, 8])}
    rows = {name: np.ones((len(keys), DIMS[name]), np.float32) for name, keys in keys_of(3, 1).items()}
    return [LaneGradients(0), lane_of(3, 1, rows, DENSE), LaneGradients(2, {}, DENSE, {"loss": 0.25}, forget)]


def read(data):
    """The message, as from a socket that ends behind it: a wrong length is an error."""
    if len(data) < HEAD.size:
        raise ProtocolError("the stream ends in the head")
    header, body = sizes(data[: HEAD.size])
    if len(data) != HEAD.size + header + body:
        raise ProtocolError("the stream ends in the message, or goes on behind it")
    view = memoryview(data)[HEAD.size :]
    return decode(view[:header], bytearray(view[header:]))


def through(frame):
    return read(b"".join(encode(frame)))


def test_an_exchange_comes_through_whole():
    keys = {"features": np.array([3, -1, 3]), "items": np.empty(0, np.int64)}
    frame = through(exchange_frame(4, 9, 123, lanes(), keys))
    message = frame.message
    assert (message.generation, message.step, message.time_ms) == (4, 9, 123)
    got, next_keys = read_exchange(frame)
    assert next_keys["features"].tolist() == [3, -1, 3] and len(next_keys["items"]) == 0
    assert got[0] == LaneGradients(0)
    for name, sent in lanes()[1].tables.items():
        for column, other in zip(got[1].tables[name], sent, strict=True):
            assert column.dtype == other.dtype and (column == other).all() and len(column)
    assert (got[2].lane, got[2].metrics) == (2, {"loss": 0.25})
    assert (got[2].dense == DENSE).all() and got[2].forget["items"].tolist() == [7, 8]
    assert read_exchange(through(exchange_frame(4, 9, 1, [], None)))[1] is None


@given(st.lists(st.tuples(st.sampled_from("kcf"), st.integers(0, 5), st.integers(0, 3)), max_size=6))
def test_arrays_come_back_bit_for_bit_and_aligned(shapes):
    kinds = {"k": np.int64, "c": np.int32, "f": np.float32}
    arrays = [
        np.arange(rows * (width or 1)).astype(kinds[kind]).reshape((rows, width) if width else rows)
        for kind, rows, width in shapes
    ]
    for sent, got in zip(arrays, through(Frame(AppliedQuery(), arrays)).arrays, strict=True):
        assert got.dtype == sent.dtype and got.shape == sent.shape and (got == sent).all()
        assert got.flags.aligned


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_broken_messages_are_errors_and_never_wrong_shapes(spot, flip, cut):
    data = bytearray(b"".join(encode(exchange_frame(4, 9, 1, lanes(), {"items": np.arange(5)}))))
    spot %= len(data)
    if cut:
        del data[spot:]
    else:
        data[spot] ^= flip
    try:
        frame = read(bytes(data))
        if isinstance(frame.message, Exchange):
            read_exchange(frame)
    except ProtocolError:
        pass  # anything else would kill the thread that reads


SIZES = st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**31 + 1, 2**40, 2**61, 2**63 - 1, 2**64 - 1])


@settings(max_examples=500, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("kcfx"), st.lists(SIZES, max_size=3)), max_size=3),
    st.sampled_from([0, 8, 16, 24, 64]),
)
def test_a_shape_is_an_array_of_the_body_or_an_error(parts, size):
    header = msgspec.msgpack.encode([AppliedQuery(), parts])
    try:
        arrays = decode(header, bytes(size)).arrays
    except ProtocolError:
        return
    assert sum(array.nbytes + -array.nbytes % 8 for array in arrays) == size
    for array in arrays:
        assert len(array) <= size and max(array.shape) <= MAX_BODY


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x92", b"\x92\x81\xa4type\xa5hello"]))
def test_a_header_is_a_message_or_an_error(data, begin):
    for read in (decode_hello, lambda header: decode(header, b"")):
        with contextlib.suppress(ProtocolError):
            read(begin + data)


@pytest.mark.parametrize("begin", [b"", b"\x92\x81\xa4type\xa5where\x91\x93\xa1k\x90", b"\x93\xc0\xc0"])
def test_a_deeply_nested_header_is_an_error(begin):
    for read in (decode_hello, lambda header: decode(header, b"")):
        with pytest.raises(ProtocolError):
            read(begin + b"\x91" * 4000)


def test_a_hello_has_no_arrays_and_is_no_other_message():
    hello = Hello("token", "main", 1, 0, 2, 4, 0, 1, 1)
    header = encode(Frame(hello))[0][HEAD.size :]
    assert decode_hello(header) == hello
    for message, parts in ((hello, [("k", [2**63 - 1, 0])]), (AppliedQuery(), [])):
        with pytest.raises(ProtocolError):
            decode_hello(msgspec.msgpack.encode([message, parts]))


def test_announced_sizes_are_limited():
    with pytest.raises(ProtocolError, match="expected at most"):
        sizes(HEAD.pack(1 << 30, 0))
    with pytest.raises(ProtocolError, match="expected at most"):
        sizes(HEAD.pack(10, 1), max_body=0)


def test_missing_and_surplus_arrays_are_errors():
    head = LaneHead(0, ["items"], [], False, {})
    message = Exchange(1, 1, 0, [head], None)
    with pytest.raises(ProtocolError, match="fewer arrays"):
        read_exchange(Frame(message, [np.arange(3)]))
    with pytest.raises(ProtocolError, match="more arrays"):
        read_exchange(Frame(Exchange(1, 1, 0, [], None), [np.arange(3)]))
    with pytest.raises(ProtocolError, match="keys are float32"):
        read_exchange(Frame(Exchange(1, 1, 0, [], ["items"]), [np.ones(3, np.float32)]))


def test_rows_of_an_answer():
    rows = np.ones((2, 3), np.float32)
    frame = through(Frame(Reply(4, ["items"], True), [rows, DENSE]))
    assert frame.message == Reply(4, ["items"], True) and (frame.arrays[0] == rows).all()
    assert through(Frame(LookupQuery(4, ["items"]), [np.arange(3)])).message.step == 4
