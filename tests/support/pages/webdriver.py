"""Headless Chromium through Selenium, with the few gestures and waits that page tests need."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.keys import Keys

from recsys.free_ports import free_ports

T = TypeVar("T")

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
]  # fmt: skip
KEYS = {
    "Tab": Keys.TAB,
    "Enter": Keys.ENTER,
    "ArrowDown": Keys.ARROW_DOWN,
    "ArrowUp": Keys.ARROW_UP,
    "Escape": Keys.ESCAPE,
}


def chromium_is_there() -> bool:
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One headless browser with one window and a fresh profile. Use it as a context manager."""

    def __init__(self, width: int = 1440, height: int = 900, phone: bool = False) -> None:
        self._profile = tempfile.mkdtemp(prefix="feed-page-")
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        sizes = [f"--window-size={width},{height}", f"--user-data-dir={self._profile}"]
        for flag in [*FLAGS, *sizes]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if phone:
            screen = {"width": width, "height": height, "pixelRatio": 2}
            metrics = screen | {"touch": True, "mobile": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        try:
            self._driver = Chrome(options, ChromeService(shutil.which("chromedriver"), next(free_ports())))
        except BaseException:
            shutil.rmtree(self._profile, ignore_errors=True)
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._driver.quit()
        finally:
            shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, url: str) -> None:
        self._driver.get(url)

    def replace_window(self) -> None:
        """Opens an empty window in the background and closes the current one, which is visible until then."""
        blank = {"url": "about:blank", "background": True}
        after = self.devtools("Target.createTarget", blank)["targetId"]
        self._driver.close()
        self._driver.switch_to.window(after)

    def run(self, script: str, *arguments: object) -> Any:
        """Returns what a script returns; a promise is awaited."""
        return self._driver.execute_script(script, *arguments)

    def press(self, key: str) -> None:
        ActionChains(self._driver, duration=0).send_keys(KEYS.get(key, key)).perform()

    def tap(self, x: int, y: int, times: int = 1) -> None:
        actions = ActionBuilder(self._driver, mouse=PointerInput("touch", "finger"), duration=0)
        actions.pointer_action.move_to_location(x, y)
        for _ in range(times):
            actions.pointer_action.pointer_down().pointer_up().pause(0.04)
        actions.perform()

    def swipe(self, x: int, from_y: int, to_y: int) -> None:
        """Swipes with one finger, as the browser's own gesture recogniser sees it."""
        steps = 12
        self._touch("touchStart", x, from_y)
        for step in range(1, steps + 1):
            self._touch("touchMove", x, from_y + (to_y - from_y) * step // steps)
            time.sleep(0.01)
        self.devtools("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._driver.execute_cdp_cmd(command, parameters)

    def console(self) -> list[str]:
        """Console entries of the page since the last call: "LEVEL text"."""
        entries = self._driver.get_log("browser")
        return [f"{entry['level']} {entry['message']}" for entry in entries]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(self._driver.get_screenshot_as_png())

    def wait(self, script: str, timeout_s: float = 30.0) -> Any:
        """Runs a script until it returns a true value, and returns that."""
        return wait(lambda: self.run(script), script, timeout_s)

    def _touch(self, kind: str, x: int, y: int) -> None:
        event = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
        self.devtools("Input.dispatchTouchEvent", event)


def wait(look: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Calls ``look`` until it returns a true value; raises AssertionError after the timeout."""
    until = time.monotonic() + timeout_s
    while True:
        value = look()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"after {timeout_s} s still not: {what}; last value {value!r}")
        time.sleep(0.03)
