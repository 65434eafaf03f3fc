"""A receiver of OTLP/HTTP of our own, on loopback. It reads the JSON by OpenTelemetry's own definition."""

import base64
import gzip
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """Keeps what it gets. ``status``: what it answers."""

    def __init__(self, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[Mapping[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                packed = self.headers["content-encoding"] == "gzip"
                outer.headers.append(dict(self.headers))
                outer.bodies.append(gzip.decompress(body) if packed else body)
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
        found = []
        for body in self.bodies:
            for resource in _message(body).resource_spans:
                names = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    found += [(names["service.name"], span) for span in scope.spans]
        return found


def _message(body: bytes) -> Any:
    """The request; raises an error for a field that OTLP doesn't have. Its JSON has ids in hexadecimal, which
    protobuf's has in base 64."""
    from google.protobuf.json_format import ParseDict
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    def based(values: dict[str, Any]) -> dict[str, Any]:
        ids = {name: value for name, value in values.items() if name.lower().endswith("spanid")}
        ids |= {"traceId": values["traceId"]} if "traceId" in values else {}
        return values | {n: base64.b64encode(bytes.fromhex(x)).decode() for n, x in ids.items()}

    return ParseDict(json.loads(body, object_hook=based), ExportTraceServiceRequest())
