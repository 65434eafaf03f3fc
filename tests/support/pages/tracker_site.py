"""A site whose pages use the TypeScript client, with a stub that takes events."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

TYPESCRIPT = ROOT / "clients" / "typescript"
_FOLDERS = {"dist": TYPESCRIPT / "dist", "node_modules": TYPESCRIPT / "node_modules"}
_TYPES = {".html": "text/html", ".js": "text/javascript"}
_HEAD = """<!doctype html><meta charset="utf-8"><title>feed</title><link rel="icon" href="data:,">
<style>
body { margin: 0 }
#feed { display: grid; grid-template-columns: repeat(10, 60px); grid-auto-rows: 40px }
</style>
<div id="feed"></div>
"""
# One screen shows a whole list of 100 items.
_TRACKER = """<script type="module">
import { Client, Tracker } from "/dist/index.js";
const given = new URLSearchParams(location.search);
/** Answers to events are lost on the way while `window.losesAnswers`. */
const lossy = async (url, init) => {
  const answer = await fetch(url, init);
  if (window.losesAnswers && url.endsWith("/v1/events")) throw new TypeError("the connection broke");
  return answer;
};
const [api, key] = [given.get("api"), given.get("token")];
const client = new Client({ url: api, key, timeoutMs: 3000, fetch: lossy });
const feed = document.getElementById("feed");
const backoff = { firstMs: 100, longestMs: 500 };
const tracker = new Tracker({
  client, userId: given.get("user"), minVisibleMs: 30, lingerMs: 100, batch: 50, maxQueued: 20000, backoff,
  ...JSON.parse(given.get("options") ?? "{}"),
});
const lists = [];
window.fetchLists = async (count) => {
  const request = { user_id: given.get("user"), n: 100 };
  while (lists.length < count) lists.push(await client.recommend(request, { attempts: 9 }));
};
window.show = async (index) => {
  const list = lists[index];
  feed.replaceChildren(...list.items.map(({ item_id }) => {
    const cell = document.createElement("div");
    tracker.observe(cell, { list, itemId: item_id });
    return cell;
  }));
  await shownFor(80);
  return list.items.map(({ item_id }) => [list.request_id, item_id]);
};
/** Two frames: the observer has looked at the new elements. */
const shownFor = async (ms) => {
  for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
  await new Promise((resolve) => setTimeout(resolve, ms));
};
Object.assign(window, { client, tracker, lists, feed, shownFor });
document.body.dataset.ready = "yes";
</script>"""
# React has no ES modules of its own: a small loader runs its CommonJS files.
_REACT = """<script type="module">
const sources = {};
const files = {
  react: "react/cjs/react.development.js",
  scheduler: "scheduler/cjs/scheduler.development.js",
  "react-dom": "react-dom/cjs/react-dom.development.js",
  "react-dom/client": "react-dom/cjs/react-dom-client.development.js",
};
for (const [name, file] of Object.entries(files)) {
  sources[name] = await (await fetch("/node_modules/" + file)).text();
}
const loaded = {};
window.require = (name) => {
  if (!loaded[name]) {
    const module = (loaded[name] = { exports: {} });
    new Function("require", "module", "exports", "process", sources[name])(
      window.require, module, module.exports, { env: { NODE_ENV: "development" } });
  }
  return loaded[name].exports;
};
const { createElement: h, StrictMode, useState } = window.require("react");
const { Client } = await import("/dist/index.js");
const { useTracker, useView } = await import("/dist/react.js");
const client = new Client({ url: new URLSearchParams(location.search).get("api") });
const list = { request_id: "r1", token: "t1" };
const Card = ({ tracker, item }) => h("div", { ref: useView(tracker, list, item) });
function Feed() {
  const [items, setItems] = useState(["v1", "v2"]);
  const [user, setUser] = useState("u1");
  const tracker = useTracker({ client, userId: user, minVisibleMs: 30, lingerMs: 50 });
  Object.assign(window, { setItems, setUser, tracker });
  return items.map((item, place) => h(Card, { key: place, tracker, item }));
}
window.root = window.require("react-dom/client").createRoot(document.getElementById("feed"));
window.root.render(h(StrictMode, null, h(Feed)));
document.body.dataset.ready = "yes";
</script>"""
_IMPORTS = """<script type="importmap">{"imports": {"react": "/react.js"}}</script>"""
_REACT_MODULE = """const { useCallback, useEffect, useRef, useState } = window.require("react");
export { useCallback, useEffect, useRef, useState };"""
_PAGES = {
    "/tracker.html": _HEAD + _TRACKER,
    "/react.html": _HEAD + _IMPORTS + _REACT,
    "/react.js": _REACT_MODULE,
}


class TrackerSite:
    """The site on a free loopback port. ``events``: what came to its own ``/v1/events``."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []  # headers of the calls
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.origin = f"http://127.0.0.1:{self._server.server_address[1]}"
        loop = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        loop.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(site: TrackerSite) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            body = _PAGES[path].encode() if path in _PAGES else _file(path)
            kind = _TYPES.get(Path(path).suffix, "text/plain")
            self._answer(404 if body is None else 200, body or b"", kind)

        def do_POST(self) -> None:
            events = json.loads(self.rfile.read(int(self.headers["content-length"])))["events"]
            site.events += events
            site.calls.append(dict(self.headers))
            results = [{"index": i, "status": "accepted"} for i in range(len(events))]
            self._answer(202, json.dumps({"results": results}).encode(), "application/json")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _file(path: str) -> bytes | None:
    folder, _, rest = path.lstrip("/").partition("/")
    file = _FOLDERS[folder] / rest if folder in _FOLDERS else None
    return file.read_bytes() if file is not None and file.is_file() else None
