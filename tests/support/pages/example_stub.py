"""A stub of the API behind the pages of news and shop: fixed lists, and events that are kept."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from examples.page_routes import SHARED
from tests.support.pages.feed_stub import TYPES
from tests.support.paths import ROOT

_TITLES = ("Harbour reopens after the storm", "What follows the vote", "A record for the bridge")


class ExampleStub:
    """A server of one example's page on a free loopback port."""

    def __init__(self, name: str) -> None:
        self.name, self.events = name, list[dict[str, Any]]()
        self.error: dict[str, str] | None = None  # of each event
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/{name}/?user=visitor"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def file(self, path: str) -> tuple[str, bytes]:
        """Type and content of a page's file."""
        name = path.removeprefix(f"/{self.name}/") or "index.html"
        folder = ROOT / "examples" / self.name / "page"
        file = next(f / name for f in (SHARED, folder) if (f / name).exists())
        return TYPES[file.suffix], file.read_bytes()


def _list_of(count: int) -> dict[str, Any]:
    fields = {"category": "world", "published": 1_790_000_000_000, "author": "ana", "price": 12.5}
    items = [
        {"item_id": f"i{n}", "rank": n, "fields": fields | {"title": _TITLES[n % len(_TITLES)]}}
        for n in range(count)
    ]
    return {"request_id": f"r{count}", "token": "t", "items": items, "stamp": {"step": 7}}


def _handler(stub: ExampleStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/shop/similar/"):
                self._answer("application/json", json.dumps(_list_of(8)).encode())
            else:
                self._answer(*stub.file(path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            stub.events += body.get("events", [])
            receipt = {"accepted": 1, "unproven": 0, "results": [{"error": stub.error}]}
            answer = receipt if "events" in body else _list_of(body["n"])
            self._answer("application/json", json.dumps(answer).encode())

        def _answer(self, kind: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
