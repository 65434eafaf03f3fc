"""Span exporters: a file of OTLP JSON lines for a laptop, and an OTLP/HTTP receiver."""

import fcntl
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from recsys.observability.spans import Span, SpanContext, otlp

_TIMEOUT_S: Final = 5.0
_PRIVATE: Final = partial(os.open, mode=0o600)
MISSING: Final = (
    "tracing.endpoint is {endpoint!r}, and the exporter isn't installed: "
    "`pip install 'recsys-swipe[tracing]'` (in a checkout `.venv/bin/pip install -e '.[tracing]'`), or leave "
    "the endpoint empty and set tracing.file"
)


class SpanFile:
    """Appends batches of spans to a file, one OTLP request per line, under a lock of all processes. A full
    file is renamed to NAME.1, replacing the previous one. Raises OSError on failure."""

    def __init__(self, path: str | Path, max_bytes: int, resource: Mapping[str, str]) -> None:
        self._path, self._max_bytes, self._resource = Path(path), max_bytes, resource

    def __call__(self, spans: Sequence[Span]) -> None:
        line = msgspec.json.encode(otlp(spans, self._resource)) + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f".{self._path.name}.lock")
        with open(beside, "ab", opener=_PRIVATE) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._make_room(len(line))
            with open(self._path, "ab", buffering=0, opener=_PRIVATE) as file:
                file.write(line)

    def _make_room(self, more: int) -> None:
        try:
            full = self._path.stat().st_size + more > self._max_bytes
        except FileNotFoundError:
            return
        if full:
            os.replace(self._path, self._path.with_name(f"{self._path.name}.1"))


class OtlpExport:
    """Sends spans with OpenTelemetry's OTLP/HTTP exporter, which retries for some seconds, compresses, and
    reads OTEL_EXPORTER_OTLP_HEADERS and the like. Raises ConnectionError if spans are not accepted."""

    def __init__(self, endpoint: str, resource: Mapping[str, str]) -> None:
        """Raises ValueError if the library is missing."""
        check_installed(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        # It logs each attempt; our caller reports once a minute what was lost.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        self._endpoint, self._resource = endpoint, Resource(dict(resource))

    def __call__(self, spans: Sequence[Span]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        done = self._exporter.export([_readable(span, self._resource) for span in spans])
        if done is not SpanExportResult.SUCCESS:
            raise ConnectionError(f"{self._endpoint} took none of {len(spans)} spans")


def check_installed(endpoint: str) -> None:
    """Raises ValueError, with the remedy, if there is an endpoint and no exporter."""
    if not endpoint:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError as error:
        raise ValueError(MISSING.format(endpoint=endpoint)) from error


def _readable(span: Span, resource: Any) -> Any:
    """The span as OpenTelemetry's exporters read it."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Link, SpanKind

    return ReadableSpan(
        name=span.name, context=_context(span.context),
        parent=None if span.parent is None else _context(span.parent), resource=resource,
        attributes=dict(span.attributes), links=[Link(_context(linked)) for linked in span.links],
        kind=SpanKind.SERVER if span.root else SpanKind.INTERNAL, start_time=span.start_ns,
        end_time=span.end_ns,
    )  # fmt: skip


def _context(context: SpanContext) -> Any:
    from opentelemetry import trace

    return trace.SpanContext(
        int(context.trace_id, 16),
        int(context.span_id, 16),
        True,
        trace.TraceFlags(trace.TraceFlags.SAMPLED),
    )
