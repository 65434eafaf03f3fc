"""Spans, and ids that everybody derives alike: no part has to hand a context to the next one. Pure.

The trace of a swipe is a hash of its request's id, that of a step a hash of (line, epoch, step). A span's id
is a hash of its trace and of what it is about, so that whoever comes later can name it as parent or link.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import mmh3

from recsys.events.hashing import Id

Value = str | int | float | bool
About = dict[str, Value]  # a span's attributes, while they are gathered
# What spans are called: who names one as parent or link derives its id from the name.
FEED, IMPRESSION, ENGAGEMENT, FOLD = "feed", "impression", "engagement", "fold"
JOIN, SEQUENCE, SERVED = "join", "sequence", "served"
STEP, PUBLISH, APPLY = "step", "publish", "apply"  # of a step's trace
_LOW: Final = (1 << 64) - 1
_SCOPE: Final = {"name": "recsys"}
_KINDS: Final = {True: 2, False: 1}  # OTLP: a server's, and what happens inside


@dataclass(frozen=True)
class Place:
    """Where a span stands: what a parent or a link is named by. Hexadecimal digits, 32 and 16 of them."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Span:
    """One thing that was done, from ``start_ns`` to ``end_ns`` (since 1970). Of viewers' ids it says nothing:
    what a collector has, nobody here can forget."""

    place: Place
    name: str
    start_ns: int
    end_ns: int
    parent: Place | None = None
    links: tuple[Place, ...] = ()
    attributes: Mapping[str, Value] = field(default_factory=dict)

    @property
    def root(self) -> bool:
        return self.parent is None


class Tells(Protocol):
    """Who takes spans: never waits, never raises."""

    sent: int
    dropped: int

    def chosen(self, request_id: str) -> bool:
        """Whether this request is traced: every part says the same."""

    def tell(self, span: Span) -> None:
        """Takes a span over. Any thread may call it."""


def number_of(request_id: str) -> int:
    """The trace of a request as a number of 128 bits."""
    return mmh3.hash128(f"trace\x1f{request_id}", 0, signed=False)


def bound_of(share: float) -> int:
    """The lower 64 bits of a sampled trace's number are below it: the rule of OpenTelemetry's
    TraceIdRatioBased, so that a sampler of others agrees."""
    return round(share * (1 << 64))


def is_below(number: int, bound: int) -> bool:
    return number & _LOW < bound


def of_request(request_id: str, name: str, *about: Id) -> Place:
    """A span of a request's trace. ``about``: what tells it from others of that name."""
    return _place(f"{number_of(request_id):032x}", name, about)


def of_step(line: str, epoch: int, step: int, name: str = STEP, *about: Id) -> Place:
    """A span of a step's trace."""
    number = mmh3.hash128(f"step\x1f{line}\x1f{epoch}\x1f{step}", 0, signed=False)
    return _place(f"{number:032x}", name, about)


def _place(trace_id: str, name: str, about: Iterable[Id]) -> Place:
    text = "\x1f".join((trace_id, name, *map(str, about)))
    return Place(trace_id, f"{mmh3.hash64(text, 0, signed=False)[0]:016x}")


def otlp(spans: Iterable[Span], resource: Mapping[str, str]) -> dict[str, Any]:
    """An ExportTraceServiceRequest of OTLP in its JSON encoding, as plain values."""
    told = [_told(span) for span in spans]
    scope = {"scope": _SCOPE, "spans": told}
    return {
        "resourceSpans": [{"resource": {"attributes": _values(resource)}, "scopeSpans": [scope]}]
    }


def _told(span: Span) -> dict[str, Any]:
    told: dict[str, Any] = {
        "traceId": span.place.trace_id,
        "spanId": span.place.span_id,
        "name": span.name,
        "kind": _KINDS[span.root],
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _values(span.attributes),
    }
    if span.parent is not None:
        told["parentSpanId"] = span.parent.span_id
    if span.links:
        told["links"] = [{"traceId": of.trace_id, "spanId": of.span_id} for of in span.links]
    return told


def _values(attributes: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}  # 64 bits are text in protobuf's JSON
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}
