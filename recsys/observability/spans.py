"""Spans with deterministic ids: no part has to pass a trace context to the next one. Pure.

The trace of a swipe is a hash of its request id, the trace of a step a hash of (line, epoch, step). A span's
id is a hash of its trace and subject, so that any later part can name it as parent or link.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import mmh3

from recsys.events.hashing import Id

Value = str | int | float | bool
SpanAttributes = dict[str, Value]
# Span names; the id of a parent or link is derived from its name.
FEED, IMPRESSION, ENGAGEMENT, FOLD = "feed", "impression", "engagement", "fold"
JOIN, SEQUENCE, SERVED = "join", "sequence", "served"
STEP, PUBLISH, APPLY = "step", "publish", "apply"  # in a step's trace
_LOW: Final = (1 << 64) - 1
_SCOPE: Final = {"name": "recsys"}
_KINDS: Final = {True: 2, False: 1}  # OTLP: server and internal


@dataclass(frozen=True)
class SpanContext:
    """Ids by which a parent or link is named: 32 and 16 hexadecimal digits."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Span:
    """One operation from ``start_ns`` to ``end_ns`` (since 1970), without ids of viewers: we can't erase them
    from a collector."""

    context: SpanContext
    name: str
    start_ns: int
    end_ns: int
    parent: SpanContext | None = None
    links: tuple[SpanContext, ...] = ()
    attributes: Mapping[str, Value] = field(default_factory=dict)

    @property
    def root(self) -> bool:
        return self.parent is None


class SpanRecorder(Protocol):
    """Accepts spans without waiting or raising."""

    sent: int
    dropped: int

    def is_sampled(self, request_id: str) -> bool:
        """Whether this request is traced; all parts agree."""

    def record(self, span: Span) -> None:
        """Queues a span. Thread-safe."""


def trace_number(request_id: str) -> int:
    """A request's trace id as a 128-bit number."""
    return mmh3.hash128(f"trace\x1f{request_id}", 0, signed=False)


def sampling_bound(share: float) -> int:
    """Upper bound of the lower 64 bits of a sampled trace's id, by the rule of OpenTelemetry's
    TraceIdRatioBased: other samplers agree."""
    return round(share * (1 << 64))


def is_trace_sampled(number: int, bound: int) -> bool:
    return number & _LOW < bound


def request_span(request_id: str, name: str, *about: Id) -> SpanContext:
    """A span of a request's trace. ``about`` tells spans of one name apart."""
    return _span_context(f"{trace_number(request_id):032x}", name, about)


def step_span(line: str, epoch: int, step: int, name: str = STEP, *about: Id) -> SpanContext:
    """A span of a step's trace."""
    number = mmh3.hash128(f"step\x1f{line}\x1f{epoch}\x1f{step}", 0, signed=False)
    return _span_context(f"{number:032x}", name, about)


def _span_context(trace_id: str, name: str, about: Iterable[Id]) -> SpanContext:
    text = "\x1f".join((trace_id, name, *map(str, about)))
    return SpanContext(trace_id, f"{mmh3.hash64(text, 0, signed=False)[0]:016x}")


def otlp(spans: Iterable[Span], resource: Mapping[str, str]) -> dict[str, Any]:
    """An OTLP ExportTraceServiceRequest in its JSON encoding, as plain values."""
    scope = {"scope": _SCOPE, "spans": [_otlp_span(span) for span in spans]}
    spans_of = {"resource": {"attributes": _values(resource)}, "scopeSpans": [scope]}
    return {"resourceSpans": [spans_of]}


def _otlp_span(span: Span) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "traceId": span.context.trace_id, "spanId": span.context.span_id, "name": span.name,
        "kind": _KINDS[span.root], "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns), "attributes": _values(span.attributes),
    }  # fmt: skip
    if span.parent is not None:
        encoded["parentSpanId"] = span.parent.span_id
    if span.links:
        encoded["links"] = [{"traceId": at.trace_id, "spanId": at.span_id} for at in span.links]
    return encoded


def _values(attributes: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # protobuf's JSON encodes 64-bit integers as text
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}
