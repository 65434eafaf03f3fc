"""The spans of deltas: when a shard's part of a step stood on the log."""

from collections.abc import Iterable

import msgspec

from recsys.events.records import DELTAS
from recsys.observability.spans import PUBLISH, Span, SpanAttributes, SpanRecorder, step_span


class _Head(msgspec.Struct):
    """What is read of a delta: its rows are passed over."""

    line: str
    epoch: int
    step: int
    part: int


_decoder = msgspec.msgpack.Decoder(_Head)


def tell_published(tracer: SpanRecorder, deltas: Iterable[bytes], began_ns: int, ended_ns: int) -> None:
    for delta in deltas:
        its = _decoder.decode(delta)
        about: SpanAttributes = {"line": its.line, "epoch": its.epoch, "step": its.step, "part": its.part}
        place = step_span(its.line, its.epoch, its.step, PUBLISH, its.part)
        parent = step_span(its.line, its.epoch, its.step)
        told = about | {"topic": DELTAS, "bytes": len(delta)}
        tracer.record(Span(place, PUBLISH, began_ns, ended_ns, parent, (), told))
