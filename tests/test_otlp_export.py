"""What OpenTelemetry's exporter sends, as a receiver of OTLP/HTTP reads it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from recsys.spans import Span, of_request, of_step

pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")


class Receiver:
    """A collector of our own, on loopback."""

    def __init__(self, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def spans(self) -> list[tuple[str, Any]]:
        """Each span with its service's name."""
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [(names["service.name"], span) for span in scope.spans]
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    its = Receiver()
    yield its
    its.close()


def test_a_receiver_gets_what_was_told(receiver: Receiver) -> None:
    from recsys.otlp_export import OtlpExport

    feed, step = of_request("r1", "feed"), of_step("main", 0, 3)
    child = Span(of_request("r1", "x"), "x", 6, 7, feed, (step,), {"n": 3, "ok": True})
    export = OtlpExport(receiver.url, {"service.name": "recsys-serve"})
    export([Span(feed, "feed", 5, 9), child])
    [(service, root), (_, its)] = receiver.spans()
    assert service == "recsys-serve" and root.name == "feed"
    assert root.trace_id.hex() == feed.trace_id and root.span_id.hex() == feed.span_id
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (5, 9)
    assert its.parent_span_id.hex() == feed.span_id and root.parent_span_id == b""
    assert its.links[0].span_id.hex() == step.span_id
    assert {a.key: a.value.int_value or a.value.bool_value for a in its.attributes} == {
        "n": 3,
        "ok": True,
    }


def test_a_receiver_that_refuses_is_an_error() -> None:
    from recsys.otlp_export import OtlpExport

    its = Receiver(status=400)
    try:
        with pytest.raises(ConnectionError, match="took none of 1 spans"):
            OtlpExport(its.url, {})([Span(of_request("r1", "feed"), "feed", 5, 9)])
    finally:
        its.close()
