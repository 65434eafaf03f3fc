"""Serves Prometheus metrics of the parts at ``/metrics``, from their heartbeats and the system status.

Used by ``recsys metrics``, and by the part ``metrics``, where ``metrics.port`` is set. Replicas serve their
own metrics at ``/metrics`` of the API.
"""

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from recsys.config.system_config import Config
from recsys.process.part_process import Stop
from runtime.supervision.part_metrics import text_of
from runtime.supervision.system_status import gather

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_S: Final = 10.0
_log = logging.getLogger(__name__)


def text(state: Path) -> bytes:
    """Current metrics as exposition text."""
    return text_of(gather(state, with_change=False))


def run(config: Config, stop: Stop) -> None:
    """Runs the part ``metrics`` until it is asked to stop."""
    host, port = config.metrics.host, config.metrics.port
    with Server(host, port, lambda: text(Path(config.state))) as server:
        stop.heartbeat.address("metrics", f"http://{host}:{server.port}/metrics")
        while not stop.wait(1.0):
            stop.heartbeat.gauge("scrapes", server.scrapes)


class Server:
    """Context that serves ``/metrics`` over HTTP, in threads of its own. Port 0 means any free port."""

    def __init__(self, host: str, port: int, render: Callable[[], bytes]) -> None:
        self.scrapes = 0
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_S

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    return self.send_error(404, explain="expected /metrics")
                try:
                    with lock:  # one query of log and server at a time
                        body = render()
                        server.scrapes += 1
                except Exception as error:  # the next scrape may succeed
                    _log.exception("metrics can't be collected")
                    return self.send_error(503, explain=f"{type(error).__name__}: {error}")
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Suppresses a log line per scrape."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
