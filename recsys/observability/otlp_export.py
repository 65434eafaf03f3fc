"""Spans to an OTLP/HTTP receiver, by OpenTelemetry's own exporter: it retries for some seconds, compresses,
and reads OTEL_EXPORTER_OTLP_HEADERS and the like from the environment."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from recsys.observability.spans import Place, Span

_TIMEOUT_S: Final = 5.0
_THEIRS: Final = "opentelemetry.exporter"
MISSING: Final = (
    "tracing.endpoint is {endpoint!r}, and the exporter isn't installed: "
    "`pip install 'recsys-swipe[tracing]'` (in a checkout `.venv/bin/pip install -e '.[tracing]'`), or leave "
    "the endpoint empty and set tracing.file"
)


class OtlpExport:
    """Raises ValueError at its making where the library isn't there; ConnectionError where spans don't go
    out."""

    def __init__(self, endpoint: str, resource: Mapping[str, str]) -> None:
        check_installed(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        # It logs each try by itself; whoever exports says once a minute what was lost.
        logging.getLogger(_THEIRS).setLevel(logging.CRITICAL)
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        self._endpoint, self._resource = endpoint, Resource(dict(resource))

    def __call__(self, spans: Sequence[Span]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        done = self._exporter.export([_readable(span, self._resource) for span in spans])
        if done is not SpanExportResult.SUCCESS:
            raise ConnectionError(f"{self._endpoint} took none of {len(spans)} spans")


def check_installed(endpoint: str) -> None:
    """Raises ValueError, saying what to do, where there is an endpoint and no exporter."""
    if not endpoint:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError as error:
        raise ValueError(MISSING.format(endpoint=endpoint)) from error


def _readable(span: Span, resource: Any) -> Any:
    """As the library's exporters read it."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import Link, SpanKind

    return ReadableSpan(
        name=span.name,
        context=_context(span.place),
        parent=None if span.parent is None else _context(span.parent),
        resource=resource,
        attributes=dict(span.attributes),
        links=[Link(_context(of)) for of in span.links],
        kind=SpanKind.SERVER if span.root else SpanKind.INTERNAL,
        start_time=span.start_ns,
        end_time=span.end_ns,
    )


def _context(place: Place) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(
        int(place.trace_id, 16), int(place.span_id, 16), True, TraceFlags(TraceFlags.SAMPLED)
    )
