"""What the exporter sends, as a receiver of OTLP/HTTP reads it."""

import logging
from collections.abc import Iterator

import pytest

from recsys.free_ports import free_ports
from recsys.observability.span_export import SpanReceiver
from recsys.observability.spans import Span, request_span, step_span
from recsys.observability.tracer import Tracer
from tests.support.observability.otlp_receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    its = Receiver()
    yield its
    its.close()


def test_a_receiver_gets_what_was_told(receiver: Receiver) -> None:
    feed, step = request_span("r1", "feed"), step_span("main", 0, 3)
    child = Span(request_span("r1", "x"), "x", 6, 7, feed, (step,), {"n": 3, "ok": True})
    export = SpanReceiver(receiver.url, {"service.name": "recsys-serve"})
    export([Span(feed, "feed", 5, 9), child])
    [(service, root), (_, its)] = receiver.spans()
    assert service == "recsys-serve" and root.name == "feed"
    assert root.trace_id.hex() == feed.trace_id and root.span_id.hex() == feed.span_id
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (5, 9)
    assert its.parent_span_id.hex() == feed.span_id and root.parent_span_id == b""
    assert its.links[0].span_id.hex() == step.span_id
    assert {a.key: a.value.int_value or a.value.bool_value for a in its.attributes} == {"n": 3, "ok": True}


def test_variables_of_opentelemetry_set_headers_and_compression(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = "OTEL_EXPORTER_OTLP"
    monkeypatch.setenv(f"{prefix}_HEADERS", "x-other=1")
    monkeypatch.setenv(f"{prefix}_TRACES_HEADERS", "authorization=Bearer%20t0ken, x-team=a=b")
    monkeypatch.setenv(f"{prefix}_COMPRESSION", "gzip")
    feed = request_span("r1", "feed")
    SpanReceiver(receiver.url, {"service.name": "a"})([Span(feed, "feed", 5, 9)])
    [headers], [(_, root)] = receiver.headers, receiver.spans()
    headers = {name.lower(): value for name, value in headers.items()}
    assert (headers["authorization"], headers["x-team"]) == ("Bearer t0ken", "a=b")
    assert headers["content-encoding"] == "gzip" and "x-other" not in headers
    assert root.span_id.hex() == feed.span_id


def test_an_authority_that_cannot_be_read_is_an_error(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/gone.pem")
    with pytest.raises(OSError):
        SpanReceiver(receiver.url, {})([Span(request_span("r1", "feed"), "feed", 5, 9)])


def test_a_receiver_that_refuses_is_an_error() -> None:
    its = Receiver(status=400)
    try:
        with pytest.raises(ConnectionError, match="took none of 1 spans"):
            SpanReceiver(its.url, {})([Span(request_span("r1", "feed"), "feed", 5, 9)])
    finally:
        its.close()


def test_a_receiver_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    port = next(free_ports())
    caplog.set_level(logging.INFO)
    export = SpanReceiver(f"http://127.0.0.1:{port}/v1/traces", {})
    tracer = Tracer(1.0, [export])
    for n in range(600):
        tracer.record(Span(request_span(f"r{n}", "feed"), "feed", 5, 9))
    tracer.close(20)
    assert (tracer.sent, tracer.dropped) == (0, 600)
    [said] = caplog.records
    assert said.name == "recsys.observability.tracer" and said.getMessage() == "spans dropped"
