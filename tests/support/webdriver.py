"""A tiny WebDriver client: the W3C protocol over HTTP, as far as the tests of the page need it.

Starts Debian's chromedriver with headless Chromium on a fresh profile, and ends both by their process ids.
"""

import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
]  # fmt: skip
KEYS = {"ArrowDown": "\ue015", "ArrowUp": "\ue013", "Escape": "\ue00c"}


def chromium_is_there() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One headless browser with one window. Use it as a context manager."""

    def __init__(self, width: int = 1440, height: int = 900, phone: bool = False) -> None:
        self._profile = tempfile.mkdtemp(prefix="feed-page-")
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._http = httpx.Client(base_url=self._address(), timeout=30, trust_env=False)
        options: dict[str, Any] = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--window-size={width},{height}", f"--user-data-dir={self._profile}"],
        }
        if phone:
            metrics = {
                "width": width,
                "height": height,
                "pixelRatio": 2,
                "touch": True,
                "mobile": True,
            }
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        wanted = {"capabilities": {"alwaysMatch": capabilities}}
        try:
            answer = self._http.post("/session", json=wanted, timeout=90).json()
        except httpx.HTTPError:  # a busy machine: nothing may stay behind
            self._end_driver()
            raise
        if "sessionId" not in answer["value"]:
            self._end_driver()
            raise RuntimeError(f"chromedriver started no session: {answer['value'].get('message')}")
        self._session = f"/session/{answer['value']['sessionId']}"

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._http.delete(self._session)
        finally:
            self._end_driver()

    def open(self, url: str) -> None:
        self._post("/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The value that a script returns; a promise is awaited."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, key: str) -> None:
        value = KEYS.get(key, key)
        keys = [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        self._post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def tap(self, x: int, y: int, times: int = 1) -> None:
        once = [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0},
                {"type": "pause", "duration": 40}]  # fmt: skip
        self._touch([_move(x, y), *once * times])

    def swipe(self, x: int, from_y: int, to_y: int) -> None:
        """A finger's swipe, as the browser's own gesture recogniser sees it."""
        steps = 12
        self._finger("touchStart", x, from_y)
        for i in range(1, steps + 1):
            self._finger("touchMove", x, from_y + (to_y - from_y) * i // steps)
            time.sleep(0.01)
        self.devtools("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def console(self) -> list[str]:
        """What the page wrote to the console since the last call: "LEVEL text"."""
        entries = self._post("/se/log", {"type": "browser"})
        return [f"{entry['level']} {entry['message']}" for entry in entries]

    def screenshot(self, path: Path) -> None:
        value = self._http.get(f"{self._session}/screenshot").json()["value"]
        path.write_bytes(base64.b64decode(value))

    def wait(self, script: str, timeout_s: float = 8.0) -> Any:
        """Runs a script until it returns something true, and returns that."""
        return wait(lambda: self.run(script), script, timeout_s)

    def _finger(self, kind: str, x: int, y: int) -> None:
        point = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
        self.devtools("Input.dispatchTouchEvent", point)

    def _touch(self, actions: list[dict[str, Any]]) -> None:
        finger = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}}
        self._post("/actions", {"actions": [finger | {"actions": actions}]})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(self._session + path, json=body).json()["value"]
        if isinstance(answer, dict) and "error" in answer and "stacktrace" in answer:
            raise RuntimeError(f"{path}: {answer['error']}: {answer['message']}")
        return answer

    def _address(self) -> str:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                return f"http://127.0.0.1:{line.strip().rstrip('.').rsplit(' ', 1)[1]}"
        raise RuntimeError("chromedriver ended before it said its port")

    def _end_driver(self) -> None:
        self._http.close()
        self._driver.terminate()
        try:
            self._driver.wait(10)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait(10)
        if self._driver.stdout:
            self._driver.stdout.close()
        shutil.rmtree(self._profile, ignore_errors=True)


def wait(look: Callable[[], T], what: str, timeout_s: float = 8.0) -> T:
    """Looks until there is something true; raises AssertionError after the timeout."""
    until = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"after {timeout_s} s still not: {what}; last seen {found!r}")
        time.sleep(0.03)


def _move(x: int, y: int) -> dict[str, Any]:
    return {"type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport"}
