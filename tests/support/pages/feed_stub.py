"""A stub of the API that the feed page talks to, with the page's files beside it.

It keeps what it was asked and told, so that tests can look; it can refuse, or lose its answers. Its taste is
simple but real: topics that are watched or liked come more often, so that the page has something to show.
"""

import base64
import json
import math
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from recsys.app.app_file import app_of
from tests.support.paths import ROOT

WEB = ROOT / "plugins" / "feed_page" / "web"
SHORT_VIDEO = (ROOT / "examples" / "short_video" / "app.yaml").read_text()
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
PICTURE = base64.b64decode(  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNQaEgAAAHEAQHHmVStAAAAAElFTkSuQmCC"
)
GAINS = {"long_view": 0.9, "like": 1.6, "share": 1.8, "follow": 1.4, "click": 0.3, "hide": -2.5, "skip": -0.5}
TOPICS = ["cats", "street food", "football", "space", "baking", "ocean", "city nights", "dogs", "gaming",
          "coffee", "robots", "piano", "surf", "pizza", "pandas", "volcanoes"]  # fmt: skip


class FeedStub:
    """A server on a free loopback port. ``requests`` and ``events`` are what came in, in order."""

    def __init__(self, definition: str = SHORT_VIDEO, duration_ms: int = 9_000, items: int = 600) -> None:
        """``definition``: of the app, as YAML."""
        self.app = app_of(definition).shown_as
        self.duration_ms, self.items = duration_ms, items
        self.requests: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []  # every event as often as it came
        self.taken: dict[str, dict[str, Any]] = {}  # by event_id: repeats count once
        self.preferences: list[dict[str, Any]] = []
        self.callers: set[str | None] = set()  # Authorization of what was sent
        self.paths: list[str] = []  # asked for, with query
        self.refusing = False  # /v1 answers 503
        self.lose_answers = 0  # so many next /v1/events are taken, but answered with 503
        self.degraded: list[str] = []
        self.title: str | None = None
        self.fields: dict[str, Any] = {}  # of every item, beside or instead of its own
        self.learns = True
        self.started = time.time()
        self._lock = threading.Lock()
        self._draws = random.Random(7)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        loop = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        loop.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The distinct events of one kind."""
        return [event for event in list(self.taken.values()) if event["kind"] == kind]

    def recommend(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests.append(request)
            taste = self._taste(request["user_id"])
            excluded = set(request.get("exclude_ids", ()))
            blocked = {wish["value"] for wish in self.preferences}
            pool = [i for i in range(self.items) if f"v{i}" not in excluded and f"a{i % 90}" not in blocked]
            weights = [math.exp(min(4.0, taste.get(self._tags(i)[0], 0.0))) for i in pool]
            n = request["n"]
            drawn = self._draws.choices(pool, weights, k=8 * n) if pool else []
            picked = list(dict.fromkeys(drawn))[:n]
            total = sum(weights)
            items = [
                self._item(i, rank, weights[pool.index(i)] / total, request["explain"], taste)
                for rank, i in enumerate(picked)
            ]
            stamp = {
                "line": "main", "epoch": 2, "step": self.step(), "catalogue_offset": self.items,
                "item_state_offset": 1, "session_offset": len(self.events), "policy": "p", "arms": {},
            }  # fmt: skip
            return {
                "request_id": f"r{len(self.requests)}", "token": "t", "items": items, "took_ms": 6.2,
                "stamp": stamp, "degraded": self.degraded,
            }  # fmt: skip

    def similar(self) -> list[dict[str, Any]]:
        """The same eight items for each."""
        return [self._item(i, i, 1.0, False, {}) for i in range(8)]

    def take(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            results = []
            for event in events:
                known = event["event_id"] in self.taken
                self.events.append(event)
                self.taken.setdefault(event["event_id"], event)
                results.append({"status": "duplicate" if known else "accepted"})
            return {"accepted": sum(one["status"] == "accepted" for one in results), "results": results}

    def prefer(self, preferences: list[dict[str, Any]]) -> dict[str, Any]:
        with self._lock:
            self.preferences += preferences
            return {"accepted": len(preferences), "results": [{"status": "accepted"}]}

    def session(self, user_id: str) -> dict[str, Any]:
        with self._lock:
            mine = [event for event in self.taken.values() if event["user_id"] == user_id]
            topics = [{"tag": tag, "weight": w} for tag, w in self._taste(user_id).items()]
            n = len(mine)
            recent = [
                {"item_id": event["item_id"], "learned": self.learns}
                for event in reversed(mine)
                if event["kind"] == "view"
            ]
            return {"user_id": user_id, "topics": topics, "events": n, "offset": n, "recent": recent}

    def status(self) -> dict[str, Any]:
        age_ms = (time.time() - self.started) % 0.4 * 1000 + 180
        version = {"line": "main", "epoch": 2, "step": self.step()}
        return {
            "version": version, "age_ms": age_ms, "items": self.items, "examples_per_s": 412.0,
            "events_per_s": 63.4, "click_to_session_ms": 74, "click_to_served_ms": 880,
        }  # fmt: skip

    def step(self) -> int:
        return 48_200 + int((time.time() - self.started) / 0.4)

    def _taste(self, user_id: str) -> dict[str, float]:
        taste: dict[str, float] = {}
        for event in self.taken.values():
            if event["user_id"] == user_id:
                taste = {tag: weight * 0.97 for tag, weight in taste.items()}
                tag = self._tags(int(event["item_id"][1:]))[0]
                taste[tag] = taste.get(tag, 0.0) + GAINS.get(event["kind"], 0.05)
        return taste

    def _tags(self, item: int) -> list[str]:
        return [TOPICS[item * 7 % len(TOPICS)], TOPICS[item * 5 % len(TOPICS)]]

    def _item(
        self, i: int, rank: int, propensity: float, explain: bool, taste: dict[str, float]
    ) -> dict[str, Any]:
        tags = self._tags(i)
        fields: dict[str, Any] = {"author": f"a{i % 90}", "tags": tags}
        fields["duration_ms"] = self.duration_ms
        fields["topic"] = tags[0]
        if self.title is not None:
            fields["title"] = self.title
        fields |= self.fields
        known = taste.get(tags[0], 0.0)
        long_view = 1 / (1 + math.exp(0.9 - known))
        item = {
            "item_id": f"v{i}", "rank": rank, "score": long_view * 1.7, "propensity": propensity,
            "sources": ["topic", "vector"] if known > 0.5 else ["popular"], "fields": fields,
        }  # fmt: skip
        if explain:
            item["predictions"] = {
                "long_view": long_view, "like": 0.22 * long_view, "click": 0.4 * long_view,
                "share": 0.02, "follow": 0.012, "hide": 0.05 * (1 - long_view),
            }  # fmt: skip
            item["reasons"] = [
                {
                    "feature": "tags",
                    "value": tags[0],
                    "met": 3.2,
                    "liked": min(1.0, 0.3 + 0.1 * known),
                    "effect": 0.31,
                },
                {"feature": "author", "value": fields["author"], "met": 1.0, "liked": 0.0, "effect": -0.02},
                {"feature": "popularity", "effect": 0.05},
            ]
        return item


def _handler(stub: FeedStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            stub.paths.append(self.path)
            path = self.path.split("?")[0]
            if stub.refusing and path.startswith("/v1/"):
                return self._answer(503, b"{}")
            if path.startswith("/v1/sessions/"):
                return self._json(stub.session(path.rsplit("/", 1)[1]))
            if path == "/v1/app":
                return self._json(stub.app)
            if path.endswith("/similar"):
                return self._json({"items": stub.similar()})
            if path == "/v1/status":
                return self._json(stub.status())
            if path == "/picture.png":
                return self._answer(200, PICTURE, "image/png")
            file = WEB / ("index.html" if path == "/" else path.removeprefix("/static/"))
            if not file.is_file():
                return self._answer(404, b"")
            return self._answer(200, file.read_bytes(), TYPES[file.suffix])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if stub.refusing:
                return self._answer(503, b"{}")
            stub.callers.add(self.headers["authorization"])
            if self.path == "/v1/recommend":
                return self._json(stub.recommend(body))
            if self.path == "/v1/preferences":
                return self._json(stub.prefer(body["preferences"]), 202)
            answer = stub.take(body["events"])
            if stub.lose_answers > 0:
                stub.lose_answers -= 1
                return self._answer(503, b"{}")
            return self._json(answer, 202)

        def _json(self, value: dict[str, Any], status: int = 200) -> None:
            self._answer(status, json.dumps(value).encode())

        def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
