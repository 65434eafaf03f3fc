"""``recsys metrics``: the parts' counters and the facts of ``recsys status``, for Prometheus.

Printed once, or served at ``/metrics``: by the command, or by the part ``metrics`` where ``metrics.port`` is
set. What a replica counts it tells itself, at ``/metrics`` of the API.
"""

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Final

import typer

from recsys.config.system_config import Config
from recsys.process.part_process import Stop

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_S: Final = 10.0
_log = logging.getLogger(__name__)


def metrics(
    state: Annotated[Path, typer.Option(help="The state folder.")] = Path("state"),
    port: Annotated[int, typer.Option(help="Serve them there until Ctrl-C; 0: print once.")] = 0,
    host: Annotated[str, typer.Option(help="What to bind to.")] = "127.0.0.1",
) -> None:
    """Tells what Prometheus reads of the parts."""
    if not port:
        typer.echo(text(state).decode(), nl=False)
        return
    with Server(host, port, lambda: text(state)) as server:
        typer.echo(f"http://{host}:{server.port}/metrics, until Ctrl-C")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


def text(state: Path) -> bytes:
    """As of now."""
    from runtime.supervision.part_metrics import text_of
    from runtime.supervision.system_status import gather

    return text_of(gather(state))


def run(config: Config, stop: Stop) -> None:
    """The part: serves until asked to stop."""
    its = config.metrics
    with Server(its.host, its.port, lambda: text(Path(config.state))) as server:
        stop.heartbeat.address("metrics", f"http://{its.host}:{server.port}/metrics")
        while not stop.wait(1.0):
            stop.heartbeat.gauge("scrapes", server.scrapes)


class Server:
    """``/metrics`` over HTTP, in threads of its own, as a context. Port 0 takes a free one."""

    def __init__(self, host: str, port: int, tell: Callable[[], bytes]) -> None:
        self.scrapes = 0
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_S

            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    return self._answer(404, b"/metrics\n")
                try:
                    with lock:  # one look at log and server at a time is enough
                        told = tell()
                        server.scrapes += 1
                except Exception as error:  # the next scrape may find all well
                    _log.exception("metrics can't be told")
                    return self._answer(503, f"{type(error).__name__}: {error}\n".encode())
                self._answer(200, told)

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """No line a scrape."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
